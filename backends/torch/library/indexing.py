"""Gathers and scatters by index; negative indices count from the end."""

from __future__ import annotations

import torch
from torch import Tensor


def from_front(indices: Tensor, size: int) -> Tensor:
    """Returns indices counted from the front."""
    return torch.where(indices < 0, indices + size, indices)


def take_one(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Returns x at one position of an axis, which goes."""
    place = from_front(index.to(torch.int64).reshape(1), x.shape[axis])
    return x.index_select(axis, place).squeeze(axis)


def take_along(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Returns x with an axis replaced by the axes of the indices."""
    axis %= x.dim()
    if indices.dim() == 0:
        return take_one(x, indices, axis)
    return x[(slice(None),) * axis + (indices,)]


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """Returns the slices of x that the last axis of the indices names, after shared axes."""
    if indices.dim() == 1:
        return gather_nd(x, indices.unsqueeze(0), batch_dims).squeeze(0)
    places = list(indices.unbind(-1))
    shared = [
        torch.arange(x.shape[i], device=x.device).reshape(
            [-1 if axis == i else 1 for axis in range(indices.dim() - 1)]
        )
        for i in range(batch_dims)
    ]
    return x[tuple(shared + places)]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str | None) -> Tensor:
    """Returns x with slices stored, or combined with what is there."""
    depth = indices.shape[-1]
    if reduction is None or reduction == "sum":
        if indices.dim() == 1:
            indices, updates = indices.unsqueeze(0), updates.unsqueeze(0)
        return x.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction is not None)
    rest = x.shape[depth:]
    flat = torch.zeros_like(indices[..., 0])
    for axis in range(depth):
        flat = flat * x.shape[axis] + from_front(indices[..., axis], x.shape[axis])
    rows = x.reshape(-1, rest.numel())
    places = flat.reshape(-1, 1).expand(-1, rest.numel())
    written = rows.scatter_reduce(0, places, updates.reshape(-1, rest.numel()), reduce=reduction)
    return written.reshape(x.shape)


def write_rows(
    past: Tensor, update: Tensor, starts: Tensor | None, axis: int, circular: bool
) -> Tensor:
    """Returns a cache with new positions of every batch row stored from `starts` on."""
    rows, new = past.movedim(axis, 1), update.movedim(axis, 1)
    steps = torch.arange(new.shape[1], device=past.device)
    places = steps.expand(new.shape[:2]) if starts is None else starts.unsqueeze(1) + steps
    if circular:
        places = places % rows.shape[1]
    batch = torch.arange(new.shape[0], device=past.device).unsqueeze(1)
    return rows.index_put((batch, places), new).movedim(1, axis)
