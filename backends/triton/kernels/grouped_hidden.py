"""The hidden channels of experts: both products of a gated layer and its activation at once.

hidden[r] = act(x[r] @ gate[e].T + gate_bias[e]) * (x[r] @ up[e].T + up_bias[e]) for the rows r of
expert e, or act(x[r] @ up[e].T + up_bias[e]) without a gate. Rows are read where their token stands
(`rows`), so that no copy sorted by expert is made. Tiles are those of `grouped_linear`. The
gradient computes both products again instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for, tile_options
from regraft.backends.triton.kernels.expert_activations import (
    EXPERT_ACTIVATIONS,
    EXPERT_BOUNDS,
    bounded_gate,
    bounded_value,
    hidden_channels,
    hidden_gradients,
)
from regraft.backends.triton.kernels.expert_rows import (
    bias_gradient,
    owners_of,
    rows_of_expert,
    tiles_of,
    token_gradient,
)
from regraft.backends.triton.kernels.grouped import (
    grouped_forward,
    grouped_gradient,
    reference_grouped,
)
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_counts,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import store_tile, with_bias


@triton.jit
def finished_hidden(
    hidden, gates, up_bias_ptr, gate_bias_ptr, n, N, limit, gate_limit, up_offset,
    HAS_GATE: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    HAS_GATE_BIAS: tl.constexpr,
    BOUNDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Returns the hidden channels n of both products: biases, bounds, activation and gate."""
    if HAS_UP_BIAS:
        hidden = with_bias(hidden, up_bias_ptr, n, N)
    if HAS_GATE:
        if HAS_GATE_BIAS:
            gates = with_bias(gates, gate_bias_ptr, n, N)
        hidden = bounded_value(hidden, limit, BOUNDS) + up_offset
        hidden = bounded_gate(gates, gate_limit, ACTIVATION, BOUNDS) * hidden
    else:
        hidden = bounded_gate(hidden, gate_limit, ACTIVATION, "none")
    return hidden


@triton.jit
def grouped_hidden_kernel(
    x_ptr, rows_ptr, counts_ptr, up_ptr, gate_ptr, up_bias_ptr, gate_bias_ptr, y_ptr,
    num_rows, experts, N, K, x_stride, up_expert_stride, up_n_stride, up_k_stride,
    gate_expert_stride, gate_n_stride, gate_k_stride, limit, gate_limit, up_offset,
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
        k = tl.arange(0, BLOCK_K)
        hidden = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if expert < experts:
            # rows and columns beyond the end are read from within, and never stored
            inner = tl.where(row < last, row, first).to(tl.int64)
            if HAS_ROWS:
                inner = tl.load(rows_ptr + inner)
            x_tile = x_ptr + inner[:, None] * x_stride + k[None, :]
            place = expert.to(tl.int64)
            column = (n % N).to(tl.int64)[None, :]
            up_tile = up_ptr + place * up_expert_stride + column * up_n_stride
            up_tile = up_tile + k[:, None] * up_k_stride
            gate_tile = gate_ptr + place * gate_expert_stride + column * gate_n_stride
            gate_tile = gate_tile + k[:, None] * gate_k_stride
            gates = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for start in range(0, K, BLOCK_K):
                x = tl.load(x_tile, mask=k[None, :] < K - start, other=0.0)
                up = tl.load(up_tile, mask=k[:, None] < K - start, other=0.0)
                hidden = tl.dot(x, up, hidden, input_precision=PRECISION)
                if HAS_GATE:
                    gate = tl.load(gate_tile, mask=k[:, None] < K - start, other=0.0)
                    gates = tl.dot(x, gate, gates, input_precision=PRECISION)
                    gate_tile += BLOCK_K * gate_k_stride
                x_tile += BLOCK_K
                up_tile += BLOCK_K * up_k_stride
            hidden = finished_hidden(
                hidden, gates, up_bias_ptr + place * N, gate_bias_ptr + place * N, n, N, limit,
                gate_limit, up_offset, HAS_GATE, HAS_UP_BIAS, HAS_GATE_BIAS, BOUNDS, ACTIVATION,
            )  # fmt: skip
        store_tile(y_ptr, hidden, row, n, last, N)


def reference_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, gate: Tensor | None,
    up_bias: Tensor | None, gate_bias: Tensor | None, activation: str, bounds: str, limit: float,
    gate_limit: float, up_offset: float, precision: str,
) -> Tensor:  # fmt: skip
    """Returns the hidden channels [R, N] of rows [R] of x [T, K]."""
    part = x if rows is None else x[rows]
    hidden = reference_grouped(part, up, counts, up_bias, None, precision)
    gates = None
    if gate is not None:
        gates = reference_grouped(part, gate, counts, gate_bias, None, precision)
    hidden = hidden_channels(hidden, gates, activation, bounds, limit, gate_limit, up_offset)
    is_owned = owners_of(counts, part.shape[0]) < counts.shape[0]
    return torch.where(is_owned[:, None], hidden, 0)


def _allocate_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, *others: object
) -> Tensor:
    num = x.shape[0] if rows is None else rows.shape[0]
    return torch.empty((num, up.shape[1]), dtype=x.dtype, device=x.device)


def _launch_hidden(
    x: Tensor, rows: Tensor | None, counts: Tensor, up: Tensor, gate: Tensor | None,
    up_bias: Tensor | None, gate_bias: Tensor | None, activation: str, bounds: str, limit: float,
    gate_limit: float, up_offset: float, precision: str,
) -> Tensor:  # fmt: skip
    y = _allocate_hidden(x, rows, counts, up)
    if y.numel() == 0:
        return y
    x, counts = rows_of(x), counts.contiguous()
    num, (E, N, K) = y.shape[0], up.shape
    other = up if gate is None else gate
    config = config_for("grouped_hidden", x, num // E)
    grid = (triton.cdiv(N, config["n"]), tiles_of(num, E, config["m"]))
    wrap_triton(grouped_hidden_kernel)[grid](
        x,
        counts if rows is None else rows.contiguous(),
        counts, up, other,
        up if up_bias is None else up_bias.contiguous(),
        up if gate_bias is None else gate_bias.contiguous(),
        y, num, E, N, K, x.stride(0), *up.stride(), *other.stride(), limit, gate_limit,
        up_offset,
        HAS_ROWS=rows is not None,
        HAS_GATE=gate is not None,
        HAS_UP_BIAS=up_bias is not None,
        HAS_GATE_BIAS=gate_bias is not None,
        BOUNDS=bounds,
        ACTIVATION=activation,
        PRECISION=precision,
        EXPERTS=block_of(E),
        **tile_options(config),
    )  # fmt: skip
    return y


hidden_forward = operator(
    "grouped_hidden",
    _launch_hidden,
    allocate=_allocate_hidden,
    reference=reference_hidden,
    kernel=grouped_hidden_kernel,
)


def _keep_hidden(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, activation, bounds, limit, gate_limit, up_offset, precision = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = (activation, bounds, limit, gate_limit, up_offset)
    ctx.precision = precision


def _differentiate_hidden(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, counts, up, gate, up_bias, gate_bias = ctx.saved_tensors
    precision, needs = ctx.precision, ctx.needs_input_grad
    part = x if rows is None else x[rows]
    hidden = grouped_forward(part, up, counts, up_bias, None, precision)
    gates = None
    if gate is not None:
        gates = grouped_forward(part, gate, counts, gate_bias, None, precision)
    dhidden, dgates = hidden_gradients(dy, hidden, gates, *ctx.settings)
    dx = None
    if needs[0]:
        dx = grouped_forward(dhidden, up.transpose(1, 2), counts, None, None, precision)
        if gate is not None:
            dx = dx + grouped_forward(dgates, gate.transpose(1, 2), counts, None, None, precision)
        dx = token_gradient(dx, x, rows)
    given = ((up, dhidden, 3), (gate, dgates, 4))
    dup, dgate = (
        grouped_gradient(d, part, counts, precision) if w is not None and needs[idx] else None
        for w, d, idx in given
    )
    dup_bias = bias_gradient(up_bias if needs[5] else None, dhidden, counts)
    dgate_bias = bias_gradient(gate_bias if needs[6] else None, dgates, counts)
    return dx, None, None, dup, dgate, dup_bias, dgate_bias, *[None] * 6


hidden_forward.register_autograd(_differentiate_hidden, setup_context=_keep_hidden)


def check_activation(what: str, activation: str, bounds: str, limit: float) -> None:
    """Raises ValueError where no kernel has an activation, or bounds of it."""
    if activation not in EXPERT_ACTIVATIONS:
        raise ValueError(
            f"{what}: activation `{activation}` is not one of {', '.join(EXPERT_ACTIVATIONS)}"
        )
    is_soft = bounds == "soft" and limit > 0
    if bounds not in EXPERT_BOUNDS or (is_soft and activation not in ("silu", "quick_gelu")):
        raise ValueError(
            f"{what}: bounds `{bounds}` of `{activation}`; expected one of "
            f"{', '.join(EXPERT_BOUNDS)}, soft ones of silu or quick_gelu"
        )


def grouped_hidden(
    x: Tensor,
    counts: Tensor,
    up: Tensor,
    gate: Tensor | None = None,
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
        up: [E, N, K].
        gate: [E, N, K]; without it the activation is applied to what `up` gives.
        activation: One of `EXPERT_ACTIVATIONS`.
        rows: i64[R], which row of x each one is.
        up_bias: [E, N].
        gate_bias: [E, N].
        limit: Bounds the gate from above and what it multiplies on both sides; 0: nothing.
        up_offset: Added to what the gate multiplies.
        bounds: One of `EXPERT_BOUNDS`: `clip` bounds the gate before its activation, `clip_after`
            behind it; `soft` makes x limit * tanh(x / limit), of a swish its linear factor.
        gate_limit: That of the gate; 0: `limit`.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        ValueError: Sizes differ, or the activation or the bounds are not known.
    """
    is_fitting = x.shape[1] == up.shape[2] and counts.shape == up.shape[:1]
    if not is_fitting or (gate is not None and gate.shape != up.shape):
        raise ValueError(
            f"grouped_hidden: x {list(x.shape)}, up {list(up.shape)}, counts "
            f"{list(counts.shape)}; expected [R, K], [E, N, K], [E], and a gate like up"
        )
    check_activation("grouped_hidden", activation, bounds, limit)
    x, up, gate, up_bias, gate_bias = in_autocast(x, up, gate, up_bias, gate_bias)
    check_operands(
        "grouped_hidden", x=(x, None), up=(up, None), gate=(gate, None),
        up_bias=(up_bias, up.shape[:2]), gate_bias=(gate_bias, up.shape[:2]),
    )  # fmt: skip
    check_counts("grouped_hidden", "counts", counts, up.shape[:1], x)
    check_choice("grouped_hidden", "precision", precision, PRECISIONS)
    y: Tensor = hidden_forward(
        x, rows, counts, up, gate, up_bias, gate_bias, activation,
        bounds if limit > 0 else "none", limit, gate_limit or limit, up_offset, precision,
    )  # fmt: skip
    return y
