"""Reductions that PyTorch has in another form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dims_of(x: Tensor, axes: Sequence[int], empty_is_none: bool) -> tuple[int, ...]:
    """Returns the axes to reduce; an empty list means none, or all."""
    return tuple(axes) if len(axes) or empty_is_none else tuple(range(x.dim()))


def mean_of_integers(x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """Returns the mean, truncated toward zero."""
    total = x.sum(dim=dim, keepdim=keepdim)
    count = max(x.numel() // max(total.numel(), 1), 1)
    return torch.div(total, count, rounding_mode="trunc").to(x.dtype)


def extremum_of(x: Tensor, name: str, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """Returns `amax` or `amin` of axes that may be empty: the lowest or highest value then."""
    dims = (dim,) if isinstance(dim, int) else dim
    if all(x.shape[axis] for axis in dims):
        return x.amax(dims, keepdim) if name == "amax" else x.amin(dims, keepdim)
    if x.dtype == torch.bool:
        fill: float = name == "amin"
    elif x.is_floating_point():
        fill = -torch.inf if name == "amax" else torch.inf
    else:
        limits = torch.iinfo(x.dtype)
        fill = limits.min if name == "amax" else limits.max
    sizes = x.sum(dims, keepdim).shape
    return torch.full(sizes, fill, dtype=x.dtype, device=x.device)


def product_over(x: Tensor, dim: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """Returns the product over several axes."""
    for axis in sorted((axis % x.dim() for axis in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


def accumulate(x: Tensor, name: str, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """Returns `cumsum` or `cumprod`, perhaps from the end, perhaps without the own position."""
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis) if name == "cumsum" else x.cumprod(axis)
    if exclusive:
        neutral = total.narrow(axis, 0, min(1, total.shape[axis])) * 0 + (name == "cumprod")
        total = torch.cat((neutral, total.narrow(axis, 0, max(total.shape[axis] - 1, 0))), axis)
    return total.flip(axis) if reverse else total
