"""Linear quantization, and products of quantized operands in exact f64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(param: Tensor, x: Tensor, axis: int | None, block: int) -> Tensor:
    """Returns a scale or zero point in a shape that broadcasts with x."""
    if axis is None:
        return param.reshape(())
    axis %= x.dim()
    if block:
        return param.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return param.reshape((-1, *(1,) * (x.dim() - 1 - axis)))


def divide_by_scale(
    x: Tensor, scale: Tensor, axis: int | None, block: int, half: torch.dtype | None = None
) -> Tensor:
    """Returns x / scale in f32, or rounded as a division in 16 bits is."""
    factor = spread(scale, x, axis, block)
    if x.dtype == torch.float64:
        return x / factor
    if half is None:
        return x.float() / factor.float()
    return (x.to(half).float() / factor.to(half).float()).to(half).float()


def round_to(
    x: Tensor, zero: Tensor | None, axis: int | None, block: int, low: int, high: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Returns x rounded half to even, plus the zero point, kept in range."""
    shifted = x.round() if high < 1 << 15 else x.round().double()
    if zero is not None:
        shifted = shifted + spread(zero, x, axis, block).to(shifted.dtype)
    return shifted.clamp(low, high).to(dtype)


def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int | None, block: int, dtype: torch.dtype
) -> Tensor:
    """Returns (x - zero point) * scale."""
    if zero is None:
        centered = x.float()
    else:
        point = spread(zero, x, axis, block)
        # integers below 32 bits and their differences are exact in an f32
        exact = x.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64)
        wide = torch.int64 if exact else torch.float32
        centered = (x.to(wide) - point.to(wide)).float()
    return (centered * spread(scale, x, axis, block).float()).to(dtype)


def rounded_to_range(
    x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Returns x as the codes of a range hold it; in training, rounding passes gradients on."""
    codes = round_to(divide_by_scale(x, scale, None, 0), zero, None, 0, low, high, dtype)
    held = dequantize(codes, scale, zero, None, 0, x.dtype)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return held
    step = scale.reshape(())
    point = torch.zeros_like(step) if zero is None else zero.reshape(()).to(step.dtype)
    kept = x.clamp((low - point) * step, (high - point) * step)
    return kept + (held - kept).detach()


def look_up(codes: Tensor, table: Tensor, scale: Tensor, axis: int, block: int) -> Tensor:
    """Returns the values of codes in a table times the scales of their blocks."""
    values = table[codes.long()]
    return values * spread(scale, codes, axis, block).to(values.dtype)


def quantize_dynamically(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (u8 of x, scale, zero point) with a range that holds all elements and 0."""
    high, low = x.amax().clamp(min=0), x.amin().clamp(max=0)
    span = torch.where(high == low, 1, high - low)
    scale = span / 255
    zero = (-low / scale).clamp(0, 255).round()
    y = ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8)
    return y, scale, zero.to(torch.uint8)


def center(x: Tensor, zero: Tensor | None, is_rows: bool = False) -> Tensor:
    """Returns f64 of x minus its zero point: products of these are sums of exact integers."""
    if zero is None:
        return x.double()
    point = zero.double()
    return x.double() - (per_row(point) if is_rows else point)


def per_row(param: Tensor) -> Tensor:
    """Returns a vector of several elements as a column."""
    return param.unsqueeze(1) if param.dim() == 1 and param.numel() > 1 else param


def multiply_integers(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """Returns i32 of the product of two integer operands."""
    product = center(a, a_zero, True) @ center(b, b_zero)
    return product.to(torch.int64).to(torch.int32)


def multiply_quantized(
    a: Tensor, b: Tensor, a_scale: Tensor, a_zero: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, low: int, high: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Returns the quantized product of two quantized operands."""
    product = center(a, a_zero, True) @ center(b, b_zero)
    factor = per_row(a_scale.float()) * b_scale.float() / per_row(y_scale.float())
    rounded = (product.float() * factor).round() + per_row(y_zero).float()
    return rounded.clamp(low, high).to(dtype)


def convolve_exactly(
    x: Tensor, weight: Tensor, x_zero: Tensor | None, weight_zero: Tensor | None,
    strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Returns the f64 convolution of centered operands; pads add the number 0."""
    rank = len(strides)
    left = center(x, None if x_zero is None else x_zero.reshape(()))
    if weight_zero is not None:
        whole = weight_zero.numel() == 1
        weight_zero = weight_zero.reshape(() if whole else (-1, *(1,) * (weight.dim() - 1)))
    widths = [pads[side * rank + axis] for axis in range(rank)[::-1] for side in (0, 1)]
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    padded, kernel = F.pad(left, widths), center(weight, weight_zero)
    return function(padded, kernel, stride=tuple(strides), dilation=tuple(dilations), groups=groups)


def convolve_integers(
    x: Tensor, weight: Tensor, x_zero: Tensor | None, weight_zero: Tensor | None,
    strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Returns i32 of the convolution of two integer operands."""
    out = convolve_exactly(x, weight, x_zero, weight_zero, strides, dilations, pads, groups)
    return out.to(torch.int64).to(torch.int32)


def convolve_quantized(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_scale: Tensor, x_zero: Tensor,
    weight_scale: Tensor, weight_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], groups: int,
    low: int, high: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Returns the quantized convolution of two quantized operands."""
    out = convolve_exactly(x, weight, x_zero, weight_zero, strides, dilations, pads, groups)
    channels = (-1, *(1,) * len(strides))
    if bias is not None:
        out = out + bias.double().reshape(channels)
    factor = x_scale.float() * weight_scale.float().reshape(-1) / y_scale.float()
    factor = factor.reshape(channels if factor.numel() > 1 else ())
    rounded = (out.float() * factor).round() + y_zero.reshape(()).float()
    return rounded.clamp(low, high).to(dtype)
