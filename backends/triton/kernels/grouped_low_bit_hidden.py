"""The hidden channels of experts whose matrices are codes: both products, the activation at once.

What `grouped_hidden` computes, of matrices that are unpacked where they are multiplied
(`grouped_low_bit_linear`). The gradient computes both products again instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.coded_matrices import (
    CodedMatrices,
    check_coded,
    unpacked_matrices,
)
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.expert_activations import hidden_gradients
from regraft.backends.triton.kernels.expert_rows import (
    bias_gradient,
    rows_of_expert,
    tiles_of,
    token_gradient,
)
from regraft.backends.triton.kernels.grouped_hidden import (
    check_activation,
    finished_hidden,
    reference_hidden,
)
from regraft.backends.triton.kernels.grouped_low_bit import grouped_low_bit_forward
from regraft.backends.triton.kernels.grouped_low_bit_gradient import grouped_low_bit_gradient
from regraft.backends.triton.kernels.low_bit import (
    add_low_bit_product,
    coded_operands,
    coding_options,
    scale_outputs,
    stepped_tile,
)
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import store_tile


@triton.jit
def grouped_low_bit_hidden_kernel(
    x_ptr, rows_ptr, counts_ptr, up_ptr, up_scale_ptr, up_zeros_ptr, gate_ptr, gate_scale_ptr,
    gate_zeros_ptr, table_ptr, up_bias_ptr, gate_bias_ptr, y_ptr,
    num_rows, experts, N, K, x_stride, codes_expert_stride, scale_expert_stride, group, zero,
    limit, gate_limit, up_offset,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    HAS_GATE_BIAS: tl.constexpr,
    BOUNDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """Writes a tile of hidden channels of rows of one expert."""
    # f64 where PyTorch's compiler launches
    limit = tl.cast(limit, tl.float32)
    gate_limit = tl.cast(gate_limit, tl.float32)
    up_offset = tl.cast(up_offset, tl.float32)
    expert, first, last = rows_of_expert(
        counts_ptr, tl.program_id(1), experts, num_rows, BLOCK_M, EXPERTS
    )
    if first < last:
        row = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        hidden = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if expert < experts:
            # rows beyond the end are read from within, and never stored
            inner = tl.where(row < last, row, first).to(tl.int64)
            if HAS_ROWS:
                inner = tl.load(rows_ptr + inner)
            x_rows = x_ptr + inner[:, None] * x_stride
            place = expert.to(tl.int64)
            of_codes, of_scale = place * codes_expert_stride, place * scale_expert_stride
            gates = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for begin in range(0, K, BLOCK_K * STEPS):
                for step in tl.static_range(STEPS):
                    start = begin + step * BLOCK_K
                    k = start + tl.arange(0, BLOCK_K)
                    x = tl.load(x_rows + k[None, :], mask=(k < K)[None, :], other=0.0)
                    hidden = add_low_bit_product(
                        hidden, x, up_ptr + of_codes, up_scale_ptr + of_scale,
                        up_zeros_ptr + of_scale, table_ptr, start, k, n, K, N, N, group, zero,
                        BITS, GROUPED, HAS_ZEROS, HAS_TABLE, PRECISION,
                    )  # fmt: skip
                    if HAS_GATE:
                        gates = add_low_bit_product(
                            gates, x, gate_ptr + of_codes, gate_scale_ptr + of_scale,
                            gate_zeros_ptr + of_scale, table_ptr, start, k, n, K, N, N, group,
                            zero, BITS, GROUPED, HAS_ZEROS, HAS_TABLE, PRECISION,
                        )  # fmt: skip
            if not GROUPED:
                hidden = scale_outputs(hidden, up_scale_ptr + of_scale, n, N)
                if HAS_GATE:
                    gates = scale_outputs(gates, gate_scale_ptr + of_scale, n, N)
            hidden = finished_hidden(
                hidden, gates, up_bias_ptr + place * N, gate_bias_ptr + place * N, n, N, limit,
                gate_limit, up_offset, HAS_GATE, HAS_UP_BIAS, HAS_GATE_BIAS, BOUNDS, ACTIVATION,
            )  # fmt: skip
        store_tile(y_ptr, hidden, row, n, last, N)


def reference_low_bit_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, up_scale: Tensor,
    up_zeros: Tensor | None, gate: Tensor | None, gate_scale: Tensor | None,
    gate_zeros: Tensor | None, table: Tensor | None, up_bias: Tensor | None,
    gate_bias: Tensor | None, zero: int, bits: int, group: int, activation: str, bounds: str,
    limit: float, gate_limit: float, up_offset: float, precision: str,
) -> Tensor:  # fmt: skip
    """Returns the hidden channels [R, N] of rows [R] of x [T, K]."""
    coded = (zero, bits, group, x.shape[1], x.dtype)
    ups = unpacked_matrices(up, up_scale, up_zeros, table, *coded)
    gates = None
    if gate is not None and gate_scale is not None:
        gates = unpacked_matrices(gate, gate_scale, gate_zeros, table, *coded)
    return reference_hidden(
        x, rows, counts, ups, gates, up_bias, gate_bias, activation, bounds, limit, gate_limit,
        up_offset, precision,
    )  # fmt: skip


def _allocate_low_bit_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, *others: object
) -> Tensor:
    num = x.shape[0] if rows is None else rows.shape[0]
    return torch.empty((num, up.shape[2]), dtype=x.dtype, device=x.device)


def _launch_low_bit_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, up_scale: Tensor,
    up_zeros: Tensor | None, gate: Tensor | None, gate_scale: Tensor | None,
    gate_zeros: Tensor | None, table: Tensor | None, up_bias: Tensor | None,
    gate_bias: Tensor | None, zero: int, bits: int, group: int, activation: str, bounds: str,
    limit: float, gate_limit: float, up_offset: float, precision: str,
) -> Tensor:  # fmt: skip
    y = _allocate_low_bit_hidden(x, rows, counts, up)
    if y.numel() == 0:
        return y
    x, counts = rows_of(x), counts.contiguous()
    *ups, numbers = coded_operands(up.contiguous(), up_scale, up_zeros, table)
    gates = ups
    if gate is not None and gate_scale is not None:
        gates = list(coded_operands(gate.contiguous(), gate_scale, gate_zeros, table)[:3])
    (num, N), E, K = y.shape, up.shape[0], x.shape[1]
    config = config_for("grouped_low_bit_hidden", x, num // E)
    grid = (triton.cdiv(N, config["n"]), tiles_of(num, E, config["m"]))
    wrap_triton(grouped_low_bit_hidden_kernel)[grid](
        x,
        counts if rows is None else rows.contiguous(),
        counts, *ups, *gates, numbers,
        x if up_bias is None else up_bias.contiguous(),
        x if gate_bias is None else gate_bias.contiguous(),
        y, num, E, N, K, x.stride(0), ups[0].stride(0), ups[1].stride(0), group, zero,
        limit, gate_limit, up_offset,
        **coding_options(bits, up_zeros, table),
        GROUPED=group < K,
        HAS_ROWS=rows is not None,
        HAS_GATE=gate is not None,
        HAS_UP_BIAS=up_bias is not None,
        HAS_GATE_BIAS=gate_bias is not None,
        BOUNDS=bounds,
        ACTIVATION=activation,
        PRECISION=precision,
        EXPERTS=block_of(E),
        **stepped_tile(config, group, K),
    )  # fmt: skip
    return y


low_bit_hidden_forward = operator(
    "grouped_low_bit_hidden",
    _launch_low_bit_hidden,
    allocate=_allocate_low_bit_hidden,
    reference=reference_low_bit_hidden,
    kernel=grouped_low_bit_hidden_kernel,
)


def _keep_low_bit_hidden(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:12])
    ctx.coded, ctx.settings, ctx.precision = inputs[12:15], inputs[15:20], inputs[20]


def _differentiate_low_bit_hidden(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, counts, *rest = ctx.saved_tensors
    up, up_scale, up_zeros, gate, gate_scale, gate_zeros, table, up_bias, gate_bias = rest
    needs, precision = ctx.needs_input_grad, ctx.precision
    part = x if rows is None else x[rows]
    ups, gated = (up, up_scale, up_zeros, table), (gate, gate_scale, gate_zeros, table)

    def product(coded: tuple[Tensor | None, ...], bias: Tensor | None) -> Tensor:
        y: Tensor = grouped_low_bit_forward(part, *coded, counts, bias, None, *ctx.coded, precision)
        return y

    def back(d: Tensor, coded: tuple[Tensor | None, ...]) -> Tensor:
        dx: Tensor = grouped_low_bit_gradient(d, *coded, counts, *ctx.coded, x.shape[1], precision)
        return dx

    gates = None if gate is None else product(gated, gate_bias)
    dhidden, dgates = hidden_gradients(dy, product(ups, up_bias), gates, *ctx.settings)
    dx = None
    if needs[0]:
        dx = back(dhidden, ups)
        if dgates is not None:
            dx = dx + back(dgates, gated)
        dx = token_gradient(dx, x, rows)
    dup_bias = bias_gradient(up_bias if needs[10] else None, dhidden, counts)
    dgate_bias = bias_gradient(gate_bias if needs[11] else None, dgates, counts)
    return dx, *[None] * 9, dup_bias, dgate_bias, *[None] * 9


low_bit_hidden_forward.register_autograd(
    _differentiate_low_bit_hidden, setup_context=_keep_low_bit_hidden
)


def grouped_low_bit_hidden(
    x: Tensor,
    counts: Tensor,
    up: CodedMatrices,
    gate: CodedMatrices | None = None,
    *,
    activation: str = "silu",
    rows: Tensor | None = None,
    up_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    limit: float = 0.0,
    up_offset: float = 0.0,
    bounds: str = "clip",
    gate_limit: float = 0.0,
    precision: str = "ieee",
) -> Tensor:
    """Returns the hidden channels [R, N] of rows that are sorted by expert.

    Args:
        x: [R, K], or [T, K] with `rows`.
        counts: i64[E], rows of every expert; rows behind them are nobody's, and become zeros.
        up: One matrix [K, N] per expert.
        gate: The same, coded in the same way, with the same table.
        activation: One of `EXPERT_ACTIVATIONS`; this and the rest as in `grouped_hidden`.
        rows: i64[R], which row of x each one is.
        up_bias: [E, N].
        gate_bias: [E, N].
        limit: Bounds the gate from above and what it multiplies on both sides; 0: nothing.
        up_offset: Added to what the gate multiplies.
        bounds: How the limit bounds.
        gate_limit: That of the gate; 0: `limit`.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        ValueError: Sizes differ, gate and up are coded in two ways, groups are no multiples of 16,
            or the activation or the bounds are not known.
    """
    for coded in (up, gate):
        if coded is not None:
            check_coded("grouped_low_bit_hidden", x.shape[1], coded, counts)
    other = up if gate is None else gate
    is_alike = (other.zeros is None) == (up.zeros is None) and other[4:] == up[4:]
    if not is_alike or other.codes.shape != up.codes.shape or other.codes.dtype != up.codes.dtype:
        raise ValueError(
            f"grouped_low_bit_hidden: gate {_coding_of(other)} beside up {_coding_of(up)}\n"
            "hint: one kernel unpacks both: they have to be coded in the same way"
        )
    check_activation("grouped_low_bit_hidden", activation, bounds, limit)
    y: Tensor = low_bit_hidden_forward(
        x, rows, counts, up.codes, up.scale, up.zeros,
        None if gate is None else gate.codes,
        None if gate is None else gate.scale,
        None if gate is None else gate.zeros,
        up.table, up_bias, gate_bias, up.zero, up.bits, up.group or x.shape[1], activation,
        bounds if limit > 0 else "none", limit, gate_limit or limit, up_offset, precision,
    )  # fmt: skip
    return y


def _coding_of(coded: CodedMatrices) -> str:
    zeros = "zeros" if coded.zeros is not None else f"zero {coded.zero}"
    return f"{list(coded.codes.shape)} of {coded.bits} bits in groups of {coded.group}, {zeros}"
