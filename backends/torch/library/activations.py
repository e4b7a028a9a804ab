"""Activation functions that PyTorch lacks."""

from __future__ import annotations

import torch
from torch import Tensor


def shrink_tensor(x: Tensor, lambd: float, bias: float) -> Tensor:
    """Returns x moved by `bias` toward zero outside [-lambd, lambd], zero within."""
    moved = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0))
    return moved.to(x.dtype)
