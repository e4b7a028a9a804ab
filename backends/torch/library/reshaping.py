"""Other axes for the same elements, by sizes that only run time knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reshape_to(x: Tensor, shape: Sequence[int], allow_zero: bool) -> Tensor:
    """Returns x in another shape, where 0 copies the size of x unless it is allowed."""
    if not allow_zero:
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(tuple(shape))


def reverse_axes(x: Tensor) -> Tensor:
    """Returns x with its axes in reverse order."""
    return x.permute(tuple(range(x.dim()))[::-1])


def insert_axes(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns x with axes of size 1 at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def expand_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns x broadcast with a shape; either may have axes of size 1."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))
