"""Conversion to element types that PyTorch lacks; each is held by the next wider one."""

from __future__ import annotations

import torch
from torch import Tensor


def wrap_bits(x: Tensor, bits: int, is_signed: bool) -> Tensor:
    """Returns the integer part of x in so many bits, wrapped."""
    code = x.to(torch.int64) & ((1 << bits) - 1)
    if not is_signed:
        return code
    half = 1 << (bits - 1)
    return (code ^ half) - half


def to_float4(x: Tensor) -> Tensor:
    """Returns the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with the sign of x, held by an f8e4m3fn."""
    x = x.float()
    size = x.abs().clamp(max=6)
    # half to even: the even multiples of a step have the even codes
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x).to(torch.float8_e4m3fn)


def to_float8_or_nan(x: Tensor) -> Tensor:
    """Returns f8e4m3fn of x, NaN for what does not round to one; PyTorch saturates."""
    halfway = 464  # between 448, the largest, and where 480 would be
    wide = x.float()
    return wide.masked_fill(wide.abs() > halfway, torch.nan).to(torch.float8_e4m3fn)


def to_power_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """Returns f8e8m0 of |x|: `up`, `down` or `nearest` power of two."""
    size = x.double().abs()
    mantissa, exponent = torch.frexp(size)  # size = mantissa * 2**exponent, 0.5 <= mantissa < 1
    code = exponent.to(torch.int64) + 126
    if round_mode == "up":
        code = code + (mantissa > 0.5)
    elif round_mode == "nearest":
        code = code + (mantissa >= 0.75)
    code = torch.where(size == 0, -1, torch.where(torch.isinf(size), 255, code))
    code = code.clamp(0, 254) if saturate else torch.where((code < 0) | (code > 254), 255, code)
    code = torch.where(torch.isnan(size), 255, code)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


def bits_of(x: Tensor, bits: int, is_float4: bool) -> Tensor:
    """Returns the codes of 4- and 2-bit elements."""
    if not is_float4:
        return x.to(torch.int64) & ((1 << bits) - 1)
    size = x.float().abs()
    code = torch.where(size < 2, size * 2, torch.where(size < 4, size + 2, size / 2 + 4))
    return code.to(torch.int64) | (torch.signbit(x.float()).to(torch.int64) << 3)


def from_bits(code: Tensor, bits: int, kind: str) -> Tensor:
    """Returns the elements that codes stand for: `unsigned`, `signed` or `float` of 4 bits."""
    if kind == "unsigned":
        return code.to(torch.uint8)
    if kind == "signed":
        half = 1 << (bits - 1)
        return ((code ^ half) - half).to(torch.int8)
    low = code & 7
    size = torch.where(low < 4, low * 0.5, torch.where(low < 6, low - 2.0, low * 2.0 - 8.0))
    return torch.where(code > 7, -size, size).to(torch.float8_e4m3fn)
