"""Triton kernels as operators of PyTorch, and their compilation without a GPU.

`kernels/` holds them; they need the extra `triton`. Whole models are not converted to packages of
kernels yet.
"""
