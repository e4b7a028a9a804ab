"""Triton kernels as operators of PyTorch, packages that call them, compilation without a GPU.

`kernels/` holds the operators, `package.py` writes models that need torch and Triton alone. They
need the extra `triton`.
"""
