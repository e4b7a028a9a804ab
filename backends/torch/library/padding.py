"""Padding of any axes in any mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_axes(
    x: Tensor, pads: Sequence[int], axes: Sequence[int] | None, mode: str, value: float
) -> Tensor:
    """Returns x with elements around it: `constant`, `reflect`, `edge` or `wrap`.

    Args:
        x: The tensor.
        pads: Elements before each axis, then after each; negative ones cut.
        axes: The padded axes; None: all.
        mode: What the new elements are.
        value: The constant.
    """
    where = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    for i, axis in enumerate(where):
        before, after = pads[i], pads[i + len(where)]
        if mode == "constant":
            x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [before, after], value=value)
        elif before or after:
            size = x.shape[axis]
            cut = max(-before, 0)
            inner = size - cut - max(-after, 0)
            places = torch.arange(-max(before, 0), inner + max(after, 0), device=x.device)
            if mode == "edge":
                places = places.clamp(0, inner - 1)
            elif mode == "wrap":
                places = places % inner
            else:
                period = max(2 * (inner - 1), 1)
                places = places % period
                places = torch.minimum(places, period - places) if inner > 1 else places * 0
            x = x.index_select(axis, places + cut)
    return x
