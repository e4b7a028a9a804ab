"""Deterministic example tensors of the calls under test."""

from __future__ import annotations

import math

import torch


def floats(
    *shape: int, dtype: torch.dtype = torch.float32, low: float = -2.0, high: float = 2.0
) -> torch.Tensor:
    """Returns floats between two bounds, the same for the same shape."""
    generator = torch.Generator().manual_seed(math.prod(shape) + len(shape))
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)


def ints(
    *shape: int, dtype: torch.dtype = torch.int64, low: int = -5, high: int = 6
) -> torch.Tensor:
    """Returns integers from `low` to below `high`."""
    generator = torch.Generator().manual_seed(math.prod(shape) + 7 * len(shape))
    low = max(low, 0) if dtype is torch.uint8 else low
    return torch.randint(low, high, shape, generator=generator, dtype=dtype)


def bools(*shape: int) -> torch.Tensor:
    """Returns truth values."""
    return ints(*shape, low=0, high=2) > 0


def distinct(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns numbers of which no two are equal, in mixed order."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return (order - count // 2).to(dtype).reshape(shape)
