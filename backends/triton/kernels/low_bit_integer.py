"""Products of 8-bit inputs with weights of 2, 4 or 8 bits on the integer matrix units.

y = x_scale * sum over groups of scale * ((x - x_zero) @ (code - zero)): a group's sum is an exact
i32, scaled in f32 afterwards (two-step dequantization: Zheng et al. 2024, MixLLM, section 3.2). The
zero point of the inputs is taken out by the sums of the weights' columns, so that both operands
stay signed bytes. Integers add in any order: a row's bits never depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for, tile_options
from regraft.backends.triton.kernels.low_bit import (
    centered_codes,
    check_codes,
    depth_of,
    dequantized,
    load_codes,
)
from regraft.backends.triton.kernels.operators import operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import place_of_tile, store_tile

INTEGER_DEPTH = 32
"""Inputs that the integer matrix units take at least at a time."""


@triton.jit
def low_bit_integer_kernel(
    x_ptr, x_scale_ptr, codes_ptr, scale_ptr, zeros_ptr, y_ptr, M, N, K, x_stride, codes_stride,
    group, x_zero, zero,
    UNSIGNED: tl.constexpr,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """Writes one tile [BLOCK_M, BLOCK_N]; `x_zero` is that of the signed inputs."""
    m, n = place_of_tile(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    x_rows = x_ptr + (m % M).to(tl.int64)[:, None] * x_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    whole = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    columns = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + k[None, :], mask=(k < K)[None, :], other=0)
        if UNSIGNED:
            x = (x.to(tl.int16) - 128).to(tl.int8)
        codes = load_codes(codes_ptr, k, n, K, N, codes_stride, BITS)
        place = (start // group).to(tl.int64) * N + n
        if BITS == 8:
            w = codes
        elif HAS_ZEROS:
            zeros = tl.load(zeros_ptr + place, mask=n < N, other=0)
            w = (codes.to(tl.int16) - zeros.to(tl.int16)[None, :]).to(tl.int8)
        else:
            w = (codes.to(tl.int16) - zero).to(tl.int8)
        if BITS < 8:
            w = tl.where((k < K)[:, None], w, 0).to(tl.int8)
        if GROUPED:
            part = tl.dot(x, w, out_dtype=tl.int32)
            part -= x_zero * tl.sum(w.to(tl.int32), axis=0)[None, :]
            scale = tl.load(scale_ptr + place, mask=n < N, other=0.0).to(tl.float32)
            total += part.to(tl.float32) * scale[None, :]
        else:
            whole = tl.dot(x, w, whole, out_dtype=tl.int32)
            columns += tl.sum(w.to(tl.int32), axis=0)
    if not GROUPED:
        scale = tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        total = (whole - x_zero * columns[None, :]).to(tl.float32) * scale[None, :]
    total = total * tl.load(x_scale_ptr + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    store_tile(y_ptr, total, m, n, M, N)


def reference_low_bit_integer(
    x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, x_zero: int,
    zero: int, bits: int, group: int,
) -> Tensor:  # fmt: skip
    """Returns x_scale * sum over groups of scale * ((x - x_zero) @ (codes - zeros))."""
    size = x.shape[-1]
    # products and sums of integers below 2^53 are exact in f64
    w = centered_codes(codes, zeros, zero, bits, size, group).double()
    total = torch.zeros((*x.shape[:-1], codes.shape[1]), dtype=scale.dtype, device=x.device)
    for idx, first in enumerate(range(0, size, group)):
        part = (x[..., first : first + group].double() - x_zero) @ w[first : first + group]
        total = total + part.to(scale.dtype) * scale[idx]
    return total * x_scale.to(scale.dtype).unsqueeze(-1)


def _allocate_low_bit_integer(
    x: Tensor, x_scale: Tensor | float, codes: Tensor, scale: Tensor, *others: object
) -> Tensor:
    return torch.empty((*x.shape[:-1], codes.shape[1]), dtype=scale.dtype, device=x.device)


def _launch_low_bit_integer(
    x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, x_zero: int,
    zero: int, bits: int, group: int,
) -> Tensor:  # fmt: skip
    y = _allocate_low_bit_integer(x, x_scale, codes, scale)
    if y.numel() == 0:
        return y
    rows, codes = rows_of(x), rows_of(codes)
    (M, K), N = rows.shape, codes.shape[1]
    config = config_for("low_bit_integer", scale, M)
    grid = (triton.cdiv(M, config["m"]) * triton.cdiv(N, config["n"]),)
    is_unsigned = x.dtype == torch.uint8
    wrap_triton(low_bit_integer_kernel)[grid](
        rows, x_scale.reshape(-1).contiguous(), codes, scale.contiguous(),
        codes if zeros is None else zeros.contiguous(), y,
        M, N, K, rows.stride(0), codes.stride(0), group, x_zero - 128 * is_unsigned, zero,
        UNSIGNED=is_unsigned,
        BITS=bits,
        GROUPED=group < K,
        HAS_ZEROS=zeros is not None,
        GROUP_M=config["group"],
        **tile_options({**config, "k": depth_of(config["k"], group, K)}),
    )  # fmt: skip
    return y


low_bit_integer_forward = operator(
    "low_bit_integer_linear",
    _launch_low_bit_integer,
    allocate=_allocate_low_bit_integer,
    reference=reference_low_bit_integer,
    kernel=low_bit_integer_kernel,
)


def rounded_inputs(x: Tensor, x_scale: float, x_zero: int, signed: bool) -> Tensor:
    """Returns the bytes of x: x / x_scale rounded half to even, plus the zero point, in range."""
    low, high = (-128, 127) if signed else (0, 255)
    # by a tensor: GPUs multiply by the reciprocal of a number
    step = torch.full((), x_scale, dtype=x.dtype, device=x.device)
    codes = (x / step).round().add(x_zero).clamp(low, high)
    return codes.to(torch.int8 if signed else torch.uint8)


def reference_rounded(
    x: Tensor, x_scale: float, codes: Tensor, scale: Tensor, zeros: Tensor | None, x_zero: int,
    signed: bool, zero: int, bits: int, group: int,
) -> Tensor:  # fmt: skip
    """Returns the product of x, rounded to bytes, with (codes - zeros) * scale."""
    factor = torch.full(x.shape[:-1], x_scale, dtype=scale.dtype, device=x.device)
    rounded = rounded_inputs(x, x_scale, x_zero, signed)
    return reference_low_bit_integer(
        rounded, factor, codes, scale, zeros, x_zero, zero, bits, group
    )


def _launch_rounded(
    x: Tensor, x_scale: float, codes: Tensor, scale: Tensor, zeros: Tensor | None, x_zero: int,
    signed: bool, zero: int, bits: int, group: int,
) -> Tensor:  # fmt: skip
    factor = torch.full(x.shape[:-1], x_scale, dtype=scale.dtype, device=x.device)
    rounded = rounded_inputs(x, x_scale, x_zero, signed)
    return _launch_low_bit_integer(rounded, factor, codes, scale, zeros, x_zero, zero, bits, group)


rounded_forward = operator(
    "rounded_low_bit_linear",
    _launch_rounded,
    allocate=_allocate_low_bit_integer,
    reference=reference_rounded,
    kernel=low_bit_integer_kernel,
)


def _keep_rounded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, x_scale, codes, scale, zeros, x_zero, signed, zero, bits, group = inputs
    ctx.save_for_backward(x, codes, scale, zeros)
    low, high = (-128, 127) if signed else (0, 255)
    ctx.range = ((low - x_zero) * x_scale, (high - x_zero) * x_scale)
    ctx.settings = (zero, bits, group)


def _differentiate_rounded(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradient that rounding passes on within its range."""
    x, codes, scale, zeros = ctx.saved_tensors
    zero, bits, group = ctx.settings
    w = dequantized(codes, scale, zeros, zero, bits, x.shape[-1], group, dy.dtype)
    low, high = ctx.range
    dx = torch.where((x >= low) & (x <= high), dy @ w.T, 0).to(x.dtype)
    return dx, *(None,) * 9


rounded_forward.register_autograd(_differentiate_rounded, setup_context=_keep_rounded)


def rounded_low_bit_linear(
    x: Tensor,
    x_scale: float,
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    x_zero: int = 0,
    signed: bool = True,
    bits: int = 8,
    group: int = 0,
    zero: int = 0,
) -> Tensor:
    """Returns `low_bit_integer_linear` of x rounded to bytes; rounding passes gradients on.

    Args:
        x: Floats [..., K].
        x_scale: Of a byte.
        codes: As those of `low_bit_integer_linear`.
        scale: [ceil(K / group), N].
        zeros: [ceil(K / group), N] or None.
        x_zero: The inputs' zero point.
        signed: Whether the bytes are i8, else u8.
        bits: Of a code.
        group: Inputs that share a scale, a multiple of 32; 0: all.
        zero: The zero point where `zeros` are absent.
    """
    size = x.shape[-1]
    check_codes("rounded_low_bit_linear", size, codes, scale, zeros, bits, group or size)
    y: Tensor = rounded_forward(
        x, x_scale, codes, scale, zeros, x_zero, signed, zero, bits, group or size
    )
    return y


def low_bit_integer_linear(
    x: Tensor,
    x_scale: Tensor | float,
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    x_zero: int = 0,
    bits: int = 8,
    group: int = 0,
    zero: int = 0,
) -> Tensor:
    """Returns (x - x_zero) * x_scale times (codes - zeros) * scale, in the dtype of scale.

    Args:
        x: Codes of the inputs, i8 or u8 [..., K].
        x_scale: Of each row, [...], or of all.
        codes: u8 [ceil(K * bits / 8), N], packed by `pack_codes`; with 8 bits i8 [K, N].
        scale: [ceil(K / group), N].
        zeros: u8 or i8 [ceil(K / group), N], of codes below 8 bits; None: `zero` everywhere.
        x_zero: The inputs' zero point.
        bits: Of a code: 2, 4 or 8.
        group: Inputs that share a scale, a multiple of 32; 0: all.
        zero: The zero point where `zeros` are absent; 0 with 8 bits.

    Raises:
        TypeError: Operands are no bytes.
        ValueError: Shapes do not go together, or the integer units do not take the groups.
    """
    size = x.shape[-1]
    check_codes("low_bit_integer_linear", size, codes, scale, zeros, bits, group or size)
    if x.dtype not in (torch.int8, torch.uint8) or (bits == 8 and codes.dtype != torch.int8):
        raise TypeError(
            f"low_bit_integer_linear: inputs {x.dtype}, codes {codes.dtype} of {bits} bits; "
            "expected i8 or u8, and i8 where codes have 8 bits"
        )
    is_uneven = 0 < group < size and group % INTEGER_DEPTH
    if is_uneven or (bits == 8 and (zero or zeros is not None)):
        raise ValueError(
            f"low_bit_integer_linear: groups of {group}, zero points with {bits} bits; expected "
            f"multiples of {INTEGER_DEPTH}, and no zero points with 8 bits"
        )
    factor = torch.as_tensor(x_scale, dtype=scale.dtype, device=x.device).expand(x.shape[:-1])
    y: Tensor = low_bit_integer_forward(
        x, factor, codes, scale, zeros, x_zero, zero, bits, group or size
    )
    return y
