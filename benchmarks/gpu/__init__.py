"""Speed of the Triton kernels on a GPU against PyTorch: `python -m benchmarks.gpu`."""
