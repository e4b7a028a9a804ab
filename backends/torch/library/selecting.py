"""Positions chosen by value; equal values go by their positions."""

from __future__ import annotations

import torch
from torch import Tensor


def first_of_sorted(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Returns the k largest or smallest along an axis, and where they are."""
    # `torch.topk` does not say which of equal values comes first
    values, indices = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def mark_positions(
    indices: Tensor, depth: int, axis: int, off: Tensor | float, on: Tensor | float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Returns `on` where a new axis equals the index, else `off`; negative ones count back."""
    axis %= indices.dim() + 1
    places = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    shape = [-1 if i == axis else 1 for i in range(indices.dim() + 1)]
    found = places == torch.arange(depth, device=indices.device).reshape(shape)
    if isinstance(off, Tensor) or isinstance(on, Tensor):
        return torch.where(found, on, off).to(dtype)
    if off == 0 and on == 1:
        return found.to(dtype)
    return torch.full_like(found, off, dtype=dtype).masked_fill(found, on)


def keep_where(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """Returns the positions of an axis, or of the flattened tensor, where a vector is true."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().squeeze(1))


def unique_of(
    x: Tensor, axis: int | None, is_sorted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (different elements or slices, first places, which one each is, how often)."""
    x = x.reshape(-1) if axis is None else x
    axis = 0 if axis is None else axis
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(x.shape[axis], device=x.device)
    first = torch.full_like(counts, x.shape[axis]).scatter_reduce(0, inverse, places, "amin")
    if is_sorted:
        return values, first, inverse, counts
    order = first.argsort()
    return values.index_select(axis, order), first[order], order.argsort()[inverse], counts[order]
