"""Padding for sliding windows, by sizes that only run time knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_same(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
    value: float,
) -> Tensor:
    """Returns x padded such that there are ceil(size / stride) windows; the odd one at the end."""
    widths: list[int] = []
    for axis in range(len(strides) - 1, -1, -1):
        size, stride = x.shape[2 + axis], strides[axis]
        span = (kernel[axis] - 1) * dilations[axis] + 1
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        before = total // 2 if upper else total - total // 2
        widths += [before, total - before]
    return F.pad(x, widths, value=value)


def pad_to_windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    value: float,
) -> Tensor:
    """Returns x padded, or cut, such that plain windows are those that the pads ask for."""
    rank = len(kernel)
    widths: list[int] = []
    for axis in range(rank - 1, -1, -1):
        size, stride, before, after = (
            x.shape[2 + axis],
            strides[axis],
            pads[axis],
            pads[rank + axis],
        )
        span = (kernel[axis] - 1) * dilations[axis] + 1
        room = size + before + after - span
        count = room // stride + 1
        if ceil_mode:  # the last window may reach beyond the end, but not start there
            count = min(-(-room // stride) + 1, -(-(size + before) // stride))
        widths += [before, (count - 1) * stride + span - before - size]
    return F.pad(x, widths, value=value)
