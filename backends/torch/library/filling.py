"""Tensors made from sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def count_steps(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Returns start, start + delta, … below the limit, each rounded once."""
    num = max(0, math.ceil(float(limit - start) / float(delta)))
    wide = torch.float64 if start.dtype == torch.float64 else torch.float32
    steps = torch.arange(num, dtype=wide, device=start.device)
    return (start.to(wide) + steps * delta.to(wide)).to(start.dtype)


def diagonal_of(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Returns ones on the k-th diagonal of a matrix as large as x."""
    rows = torch.arange(x.shape[0], device=x.device)
    columns = torch.arange(x.shape[1], device=x.device)
    return (rows[:, None] + k == columns).to(dtype)
