"""Bits of unsigned integers that lie in signed ones."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_right(x: Tensor, amount: Tensor) -> Tensor:
    """Returns 64-bit patterns moved right, zeros following."""
    kept = torch.where(amount > 0, ~(torch.full_like(x, -1) << (64 - amount)), -1)
    return (x >> amount) & kept
