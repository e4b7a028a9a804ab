"""Normalization that PyTorch has in another form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_channels(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Returns a batch norm of several element types, or whose statistics are computed."""
    factor = scale * torch.rsqrt(var + eps)
    shape = (-1, *(1,) * (x.dim() - 2))
    shift = bias - mean * factor
    return x * factor.reshape(shape).to(x.dtype) + shift.reshape(shape).to(x.dtype)


def layer_norm_with_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the norm from `axis` on; the mean and 1 / standard deviation in `wide`."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    exact = x.to(torch.promote_types(x.dtype, wide))
    mean = exact.mean(axes, keepdim=True)
    centered = exact - mean
    inv_std = torch.rsqrt(centered.square().mean(axes, keepdim=True) + eps)
    out = centered * inv_std * scale
    return (out if bias is None else out + bias).to(x.dtype), mean.to(wide), inv_std.to(wide)


def rms_norm_with_statistics(
    x: Tensor, scale: Tensor, axis: int, eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns x over its root mean square from `axis` on, and 1 / that root, in `wide`."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    exact = x.to(torch.promote_types(x.dtype, wide))
    inv_std = torch.rsqrt(exact.square().mean(axes, keepdim=True) + eps)
    return (exact * inv_std * scale).to(x.dtype), inv_std.to(wide)


def local_response(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Returns x over a power of the sum of squares in a neighbourhood of channels."""
    before, after = (size - 1) // 2, size // 2
    square = F.pad(x.square().movedim(1, -1), (before, after))
    total = square.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * total) ** beta


def standardize(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns x minus its mean over its standard deviation."""
    centered = x - x.mean(tuple(axes), keepdim=True)
    std = centered.square().mean(tuple(axes), keepdim=True).sqrt()
    return centered / (std + 1e-9)  # the constant of ONNX MeanVarianceNormalization
