"""Products with weights of 2, 4 or 8 bits, which are unpacked where they are multiplied.

y = x @ ((code - zero) * scale), a scale and a zero point per group of inputs and output. The matrix
units multiply x with the integers code - zero, which every float format holds exactly; each group's
sum is scaled afterwards, in f32 (two-step dequantization: Zheng et al. 2024, MixLLM, section 3.2).
Codes may stand for the numbers of a table instead (NF4: Dettmers et al. 2023, QLoRA; FP4, FP8).
Codes of fewer than 8 bits lie `8 // bits` to a byte along the inputs, the first in the low bits:
[ceil(K / per byte), N], so that neighbouring threads read neighbouring outputs, 16 bytes each.

The sum over the inputs has one order whatever the number of rows. With `invariant`, the tile that
rows lie in has one height too, and a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import Config, config_for, tile_options
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_operands,
    described,
)
from regraft.backends.triton.kernels.operators import operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import place_of_tile, store_tile

CODE_BITS = (2, 4, 8)


@triton.jit
def load_codes(
    codes_ptr, k, n, K, N, codes_stride,
    BITS: tl.constexpr,
):  # fmt: skip
    """Returns the codes [K tile, N tile] of inputs k and outputs n; zeros beyond."""
    per_byte: tl.constexpr = 8 // BITS
    place = codes_ptr + (k // per_byte).to(tl.int64)[:, None] * codes_stride + n[None, :]
    codes = tl.load(place, mask=(k < K)[:, None] & (n < N)[None, :], other=0)
    if BITS < 8:
        shift = ((k % per_byte) * BITS).to(tl.uint8)
        codes = (codes >> shift[:, None]) & ((1 << BITS) - 1)
    return codes


@triton.jit
def code_values(codes, zeros, table_ptr, HAS_TABLE: tl.constexpr):
    """Returns what codes stand for before they are scaled."""
    # the table lies in the first-level cache: a line of it for 4 bits
    return tl.load(table_ptr + codes.to(tl.int32)) if HAS_TABLE else codes.to(tl.int16) - zeros


@triton.jit
def add_low_bit_product(
    total, x, codes_ptr, scale_ptr, zeros_ptr, table_ptr, start, k, n, K, N, codes_stride, group,
    zero,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the product of x with the weights of inputs k, of one group, and outputs n."""
    codes = load_codes(codes_ptr, k, n, K, N, codes_stride, BITS)
    place = (start // group).to(tl.int64) * N + n
    # the interpreter of Triton 3.9 takes no masks of a condition on a scalar
    is_there = n < tl.where(start < K, N, 0)
    if HAS_ZEROS:
        zeros = tl.load(zeros_ptr + place, mask=is_there, other=0).to(tl.int16)[None, :]
    else:
        zeros = zero
    w = code_values(codes, zeros, table_ptr, HAS_TABLE).to(x.dtype)
    if GROUPED:
        scale = tl.load(scale_ptr + place, mask=is_there, other=0.0).to(tl.float32)
        total += tl.dot(x, w, input_precision=PRECISION) * scale[None, :]
    else:
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit
def scale_outputs(total, scale_ptr, n, N):
    """Returns sums times the scales of outputs n, where one group holds all inputs."""
    return total * tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def low_bit_product(
    total, x_rows, codes_ptr, scale_ptr, zeros_ptr, table_ptr, n, K, N, codes_stride, group, zero,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Returns the product of rows, which begin at x_rows [M, 1], with the weights of outputs n.

    `total` are the zeros [M, N] that it begins with.
    """
    for begin in range(0, K, BLOCK_K * STEPS):
        # small groups: several in a turn of the loop, so that as many bytes are on their way
        for step in tl.static_range(STEPS):
            start = begin + step * BLOCK_K
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_rows + k[None, :], mask=(k < K)[None, :], other=0.0)
            total = add_low_bit_product(
                total, x, codes_ptr, scale_ptr, zeros_ptr, table_ptr, start, k, n, K, N,
                codes_stride, group, zero, BITS, GROUPED, HAS_ZEROS, HAS_TABLE, PRECISION,
            )  # fmt: skip
    if not GROUPED:
        total = scale_outputs(total, scale_ptr, n, N)
    return total


@triton.jit
def low_bit_kernel(
    x_ptr, codes_ptr, scale_ptr, zeros_ptr, table_ptr, y_ptr, M, N, K, x_stride, codes_stride,
    group, zero,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """Writes one tile [BLOCK_M, BLOCK_N] of x @ ((codes - zeros) * scale)."""
    m, n = place_of_tile(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # rows past the end wrap around instead of being masked; they are not stored
    x_rows = x_ptr + (m % M).to(tl.int64)[:, None] * x_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    total = low_bit_product(
        total, x_rows, codes_ptr, scale_ptr, zeros_ptr, table_ptr, n, K, N, codes_stride, group,
        zero, BITS, GROUPED, HAS_ZEROS, HAS_TABLE, PRECISION, BLOCK_K, STEPS,
    )  # fmt: skip
    store_tile(y_ptr, total, m, n, M, N)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Returns codes u8[K, N] below 2 ** bits as bytes [ceil(K / per byte), N]."""
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % per_byte))
    parts = padded.unflatten(0, (-1, per_byte))
    packed = parts[:, 0].clone()
    for idx in range(1, per_byte):
        packed |= parts[:, idx] << (idx * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int, size: int) -> Tensor:
    """Returns the codes [size, N] of bytes."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(parts, 1).flatten(0, 1)[:size]


def centered_codes(
    codes: Tensor, zeros: Tensor | None, zero: int, bits: int, size: int, group: int
) -> Tensor:
    """Returns i32[K, N], the codes minus their zero points."""
    whole = unpack_codes(codes, bits, size).to(torch.int32)
    if zeros is None:
        return whole - zero
    return whole - zeros.to(torch.int32).repeat_interleave(group, 0)[:size]


def dequantized(
    codes: Tensor, scale: Tensor, zeros: Tensor | None, zero: int, bits: int, size: int,
    group: int, dtype: torch.dtype, table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns the weights [K, N] that codes stand for."""
    if table is None:
        whole = centered_codes(codes, zeros, zero, bits, size, group).to(dtype)
    else:
        whole = table.to(dtype)[unpack_codes(codes, bits, size).to(torch.int32)]
    return whole * scale.to(dtype).repeat_interleave(group, 0)[:size]


def reference_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None, zero: int,
    bits: int, group: int, invariant: bool, precision: str,
) -> Tensor:  # fmt: skip
    """Returns x @ ((codes - zeros) * scale), or x @ (table[codes] * scale)."""
    return x @ dequantized(codes, scale, zeros, zero, bits, x.shape[-1], group, x.dtype, table)


def _allocate_low_bit(x: Tensor, codes: Tensor, *others: object) -> Tensor:
    return torch.empty((*x.shape[:-1], codes.shape[1]), dtype=x.dtype, device=x.device)


def coded_operands(
    codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns codes, scale, zeros and table for a kernel; what is absent is another, unread."""
    scale = scale.contiguous()
    points = codes if zeros is None else zeros.contiguous()
    return codes, scale, points, scale if table is None else table.contiguous()


def coding_options(bits: int, zeros: Tensor | None, table: Tensor | None) -> dict[str, int]:
    """Returns what kernels are compiled for of codes, by the names of a launch."""
    return {"BITS": bits, "HAS_ZEROS": zeros is not None, "HAS_TABLE": table is not None}


def depth_of(depth: int, group: int, size: int) -> int:
    """Returns the inputs that a step takes: within one group, at most `depth`."""
    return depth if group >= size else min(depth, group & -group)


def stepped_tile(config: Config, group: int, size: int) -> dict[str, int]:
    """Returns the tile of a product with codes: as many steps in a turn as make up its depth."""
    depth = depth_of(config["k"], group, size)
    return {**tile_options({**config, "k": depth}), "STEPS": config["k"] // depth}


def _launch_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None, zero: int,
    bits: int, group: int, invariant: bool, precision: str,
) -> Tensor:  # fmt: skip
    y = _allocate_low_bit(x, codes)
    if y.numel() == 0:
        return y
    rows, codes = rows_of(x), rows_of(codes)
    (M, K), N = rows.shape, codes.shape[1]
    config = config_for("low_bit", x, 1 if invariant else M)
    grid = (triton.cdiv(M, config["m"]) * triton.cdiv(N, config["n"]),)
    wrap_triton(low_bit_kernel)[grid](
        rows, *coded_operands(codes, scale, zeros, table), y,
        M, N, K, rows.stride(0), codes.stride(0), group, zero,
        **coding_options(bits, zeros, table),
        GROUPED=group < K,
        PRECISION=precision,
        GROUP_M=config["group"],
        **stepped_tile(config, group, K),
    )  # fmt: skip
    return y


low_bit_forward = operator(
    "low_bit_linear",
    _launch_low_bit,
    allocate=_allocate_low_bit,
    reference=reference_low_bit,
    kernel=low_bit_kernel,
)


def _keep_low_bit(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scale, zeros, table, zero, bits, group, _, _ = inputs
    ctx.save_for_backward(codes, scale, zeros, table)
    ctx.settings = (zero, bits, x.shape[-1], group)


def _differentiate_low_bit(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, zeros, table = ctx.saved_tensors
    dx = None
    if ctx.needs_input_grad[0]:
        zero, bits, size, group = ctx.settings
        w = dequantized(codes, scale, zeros, zero, bits, size, group, dy.dtype, table)
        dx = dy @ w.T
    return dx, None, None, None, None, None, None, None, None, None


low_bit_forward.register_autograd(_differentiate_low_bit, setup_context=_keep_low_bit)


def check_codes(
    what: str, size: int, codes: Tensor, scale: Tensor, zeros: Tensor | None, bits: int, group: int
) -> None:
    """Raises ValueError where shapes do not go together or no kernel takes the groups."""
    if bits not in CODE_BITS:
        raise ValueError(f"{what}: codes of {bits} bits; expected {CODE_BITS}")
    for name, each in (("codes", codes), ("zeros", zeros)):
        if each is not None and each.dtype not in (torch.uint8, torch.int8):
            raise TypeError(f"{what}: `{name}` is {described(each)}; expected uint8 or int8")
    if group < size and group % 16:
        raise ValueError(f"{what}: groups of {group} inputs; expected a multiple of 16, or one")
    rows, groups = -(-size // (8 // bits)), -(-size // group)
    wanted = (groups, codes.shape[1])
    shapes = [scale.shape] if zeros is None else [scale.shape, zeros.shape]
    if codes.shape[0] != rows or any(shape != wanted for shape in shapes):
        raise ValueError(
            f"{what}: codes {list(codes.shape)}, scale {list(scale.shape)}, zeros "
            f"{None if zeros is None else list(zeros.shape)} for {size} inputs in groups of "
            f"{group}; expected [{rows}, N], [{groups}, N] and that again"
        )


def low_bit_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    bits: int = 4,
    group: int = 0,
    zero: int = 0,
    table: Tensor | None = None,
    invariant: bool = False,
    precision: str = "ieee",
) -> Tensor:
    """Returns x @ ((codes - zeros) * scale) of x [..., K]: [..., N]. Codes have no gradient.

    With a table, codes stand for its numbers instead (NF4, FP4): x @ (table[codes] * scale).

    Args:
        x: f32, f16 or bf16.
        codes: u8 [ceil(K * bits / 8), N], packed by `pack_codes`; with 8 bits u8 or i8 [K, N].
        scale: [ceil(K / group), N].
        zeros: u8 or i8 [ceil(K / group), N]; None: `zero` everywhere.
        bits: Of a code: 2, 4 or 8.
        group: Inputs that share a scale, a multiple of 16; 0: all.
        zero: The zero point where `zeros` are absent.
        table: f32 [2 ** bits], what codes of u8 stand for; there are no zero points then.
        invariant: Whether the bits of a row must not depend on the number of rows.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        ValueError: Shapes do not go together, or groups are no multiples of 16.
    """
    size = x.shape[-1]
    if table is not None and (table.shape != (1 << bits,) or zeros is not None or zero):
        raise ValueError(
            f"low_bit_linear: a table {list(table.shape)} for codes of {bits} bits; expected "
            f"[{1 << bits}] and no zero points"
        )
    check_operands(
        "low_bit_linear", ("scale", "table"), x=(x, None), scale=(scale, None), table=(table, None)
    )
    check_codes("low_bit_linear", size, codes, scale, zeros, bits, group or size)
    check_choice("low_bit_linear", "precision", precision, PRECISIONS)
    y: Tensor = low_bit_forward(
        x, codes, scale, zeros, table, zero, bits, group or size, invariant, precision
    )
    return y
