"""Convolutions that PyTorch has in another form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deconvolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    pads: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    upper: bool = False,
) -> Tensor:
    """Returns a transposed convolution cut by uneven pads, or to a shape."""
    rank = x.dim() - 2
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    full = function(x, weight, stride=tuple(strides), groups=groups, dilation=tuple(dilations))
    widths: list[int] = []
    for axis in range(rank - 1, -1, -1):
        size = full.shape[2 + axis] + output_padding[axis]
        if output_shape:
            cut = max(size - output_shape[axis], 0)
            begin = cut // 2 if upper else cut - cut // 2
            wanted = output_shape[axis]
        else:
            begin = pads[axis]
            wanted = size - begin - pads[rank + axis]
        widths += [-begin, begin + wanted - full.shape[2 + axis]]
    full = F.pad(full, widths)
    return full if bias is None else full + bias.reshape(-1, *(1,) * rank)


def convolve_causally(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Returns a depthwise convolution that looks back only, and the positions it needs next."""
    num = weight.shape[2] - 1
    padded = F.pad(x, (num, 0)) if past is None else torch.cat((past, x), dim=2)
    out = F.conv1d(padded, weight, bias, groups=x.shape[1])
    return F.silu(out) if silu else out, padded[:, :, padded.shape[2] - num :]
