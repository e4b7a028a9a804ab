"""Operators of PyTorch whose kernels are written in Triton, each with its reference."""
