"""Moves of elements by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Returns blocks laid out in the plane; channels are [block, block, depth]."""
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // (block * block), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (block * block), h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Returns blocks of the plane as channels [block, block, depth]."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block * block, h // block, w // block)


def reverse_rows(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """Returns x with the first `lengths[b]` steps of every batch row in reverse order."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)
    ends = lengths.unsqueeze(1)
    source = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, source].movedim((0, 1), (batch_axis, time_axis))


def crop_or_pad(x: Tensor, sizes: Sequence[int], axes: Sequence[int] | None) -> Tensor:
    """Returns the centre of x, or x amid zeros, per axis."""
    where = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    for axis, size in zip(where, sizes, strict=True):
        have = x.shape[axis]
        if size < have:
            x = x.narrow(axis, (have - size) // 2, size)
        elif size > have:
            before = (size - have) // 2
            widths = [0, 0] * (x.dim() - 1 - axis)
            x = F.pad(x, (*widths, before, size - have - before))
    return x
