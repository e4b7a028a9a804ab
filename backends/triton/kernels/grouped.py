"""Products of rows that are sorted by expert, each with its expert's matrix.

y[r] = share[r] * (x[r] @ weight[e].T + bias[e]) for the rows r of expert e; nobody's rows become
zeros. Source: Gale et al. 2022 (MegaBlocks: no row is dropped and none is filled up). The gradient
by x is the same product with the matrices transposed; that by an expert's matrix is a sum over its
rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.configs import config_for, tile_options
from regraft.backends.triton.kernels.expert_rows import (
    bias_gradient,
    parts_of,
    rows_of_expert,
    scaled_rows,
    tiles_of,
)
from regraft.backends.triton.kernels.operands import (
    PRECISIONS,
    check_choice,
    check_counts,
    check_operands,
    in_autocast,
)
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import add_product, store_tile, with_bias


@triton.jit
def finished_rows(
    total, bias_ptr, share_ptr, row, last, n, N,
    HAS_BIAS: tl.constexpr,
    HAS_SHARE: tl.constexpr,
):  # fmt: skip
    """Returns sums of an expert's rows with its biases of columns n, times each row's share."""
    if HAS_BIAS:
        total = with_bias(total, bias_ptr, n, N)
    if HAS_SHARE:
        share = tl.load(share_ptr + row, mask=row < last, other=0.0)
        total = total * share.to(tl.float32)[:, None]
    return total


@triton.jit
def grouped_kernel(
    x_ptr, weight_ptr, counts_ptr, bias_ptr, share_ptr, y_ptr, num_rows, experts, N, K,
    x_stride, weight_expert_stride, weight_n_stride, weight_k_stride,
    HAS_BIAS: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """Writes a tile of rows of one expert."""
    expert, first, last = rows_of_expert(
        counts_ptr, tl.program_id(1), experts, num_rows, BLOCK_M, EXPERTS
    )
    # there are as many programs as tiles could be
    if first < last:
        row = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if expert < experts:
            # rows and columns beyond the end are read from within, and never stored
            inner = tl.where(row < last, row, first).to(tl.int64)
            x_tile = x_ptr + inner[:, None] * x_stride + k[None, :]
            place = expert.to(tl.int64)
            w_tile = weight_ptr + place * weight_expert_stride
            w_tile = w_tile + (n % N).to(tl.int64)[None, :] * weight_n_stride
            w_tile = w_tile + k[:, None] * weight_k_stride
            total = add_product(total, x_tile, w_tile, K, weight_k_stride, PRECISION, BLOCK_K)
            total = finished_rows(
                total, bias_ptr + place * N, share_ptr, row, last, n, N, HAS_BIAS, HAS_SHARE
            )
        store_tile(y_ptr, total, row, n, last, N)


@triton.jit
def grouped_gradient_kernel(
    dy_ptr, x_ptr, counts_ptr, dweight_ptr, experts, N, K, dy_stride, x_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """Writes a tile [BLOCK_N, BLOCK_K] of the gradient by one expert's matrix."""
    expert = tl.program_id(2)
    e = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + e, mask=e < experts, other=0).to(tl.int32)
    first = tl.sum(tl.where(e < expert, counts, 0), axis=0)
    last = first + tl.sum(tl.where(e == expert, counts, 0), axis=0)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(first, last, BLOCK_M):
        row = (start + m).to(tl.int64)
        dy = tl.load(
            dy_ptr + row[None, :] * dy_stride + n[:, None],
            mask=(row < last)[None, :] & (n < N)[:, None], other=0.0,
        )  # fmt: skip
        x = tl.load(
            x_ptr + row[:, None] * x_stride + k[None, :],
            mask=(row < last)[:, None] & (k < K)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(dy, x, total, input_precision=PRECISION)
    store_tile(dweight_ptr + expert.to(tl.int64) * N * K, total, n, k, N, K)


def reference_grouped(
    x: Tensor, weight: Tensor, counts: Tensor, bias: Tensor | None, share: Tensor | None,
    precision: str,
) -> Tensor:  # fmt: skip
    """Returns x [R, K] times each row's matrix of weight [E, N, K]: [R, N]."""
    *parts, rest = parts_of(x, counts)
    results = [part @ weight[idx].T for idx, part in enumerate(parts)]
    if bias is not None:
        results = [result + bias[idx] for idx, result in enumerate(results)]
    if share is not None:
        shares = parts_of(share, counts)
        results = [(y * shares[idx].unsqueeze(1)).to(x.dtype) for idx, y in enumerate(results)]
    return torch.cat([*results, x.new_zeros(rest.shape[0], weight.shape[1])])


def _allocate_grouped(x: Tensor, weight: Tensor, *others: object) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device=x.device)


def _launch_grouped(
    x: Tensor, weight: Tensor, counts: Tensor, bias: Tensor | None, share: Tensor | None,
    precision: str,
) -> Tensor:  # fmt: skip
    y = _allocate_grouped(x, weight)
    if y.numel() == 0:
        return y
    x, counts = rows_of(x), counts.contiguous()
    (R, K), (E, N) = x.shape, weight.shape[:2]
    config = config_for("grouped", x, R // E)
    grid = (triton.cdiv(N, config["n"]), tiles_of(R, E, config["m"]))
    wrap_triton(grouped_kernel)[grid](
        x, weight, counts,
        weight if bias is None else bias.contiguous(),
        x if share is None else share.contiguous(),
        y, R, E, N, K, x.stride(0), *weight.stride(),
        HAS_BIAS=bias is not None,
        HAS_SHARE=share is not None,
        PRECISION=precision,
        EXPERTS=block_of(E),
        **tile_options(config),
    )  # fmt: skip
    return y


grouped_forward = operator(
    "grouped_linear",
    _launch_grouped,
    allocate=_allocate_grouped,
    reference=reference_grouped,
    kernel=grouped_kernel,
)


def reference_grouped_gradient(dy: Tensor, x: Tensor, counts: Tensor, precision: str) -> Tensor:
    """Returns for every expert the product of its rows, [E, N, K]."""
    pairs = zip(parts_of(dy, counts), parts_of(x, counts), strict=True)
    return torch.stack([one.T @ other for one, other in pairs][:-1])


def _allocate_grouped_gradient(dy: Tensor, x: Tensor, counts: Tensor, *others: object) -> Tensor:
    shape = (counts.shape[0], dy.shape[1], x.shape[1])
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _launch_grouped_gradient(dy: Tensor, x: Tensor, counts: Tensor, precision: str) -> Tensor:
    dweight = _allocate_grouped_gradient(dy, x, counts)
    if dweight.numel() == 0:
        return dweight
    dy, x, counts = rows_of(dy), rows_of(x), counts.contiguous()
    R, (E, N, K) = dy.shape[0], dweight.shape
    config = config_for("grouped_gradient", x, R // E)
    grid = (triton.cdiv(N, config["n"]), triton.cdiv(K, config["k"]), E)
    wrap_triton(grouped_gradient_kernel)[grid](
        dy, x, counts, dweight, E, N, K, dy.stride(0), x.stride(0),
        PRECISION=precision,
        EXPERTS=block_of(E),
        **tile_options(config),
    )  # fmt: skip
    return dweight


grouped_gradient = operator(
    "grouped_linear_gradient",
    _launch_grouped_gradient,
    allocate=_allocate_grouped_gradient,
    reference=reference_grouped_gradient,
    kernel=grouped_gradient_kernel,
)


def _keep_grouped(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, precision = inputs
    ctx.save_for_backward(*tensors)
    ctx.precision = precision


def _differentiate_grouped(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, counts, bias, share = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = dweight = dshare = None
    scaled = scaled_rows(dy, share)
    if needs[0] or needs[4]:
        back = weight.transpose(1, 2)
        dx = grouped_forward(dy, back, counts, None, share, ctx.precision)
    if needs[1]:
        dweight = grouped_gradient(scaled, x, counts, ctx.precision)
    dbias = bias_gradient(bias if needs[3] else None, scaled, counts)
    if share is not None and needs[4]:
        y = grouped_forward(x, weight, counts, bias, None, ctx.precision)
        dshare = (dy * y).sum(1, dtype=share.dtype)
    return dx if needs[0] else None, dweight, None, dbias, dshare, None


grouped_forward.register_autograd(_differentiate_grouped, setup_context=_keep_grouped)


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    counts: Tensor,
    bias: Tensor | None = None,
    share: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Returns [R, N]: every row of x times the transposed matrix of its expert.

    Args:
        x: [R, K], sorted by expert.
        weight: [E, N, K] of the same dtype, of any strides.
        counts: i64[E], rows of every expert; rows behind them are nobody's, and become zeros.
        bias: [E, N], added to the rows of each expert.
        share: [R], a factor of each row's result.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ.
    """
    if x.shape[1] != weight.shape[2] or counts.shape != weight.shape[:1]:
        raise ValueError(
            f"grouped_linear: x {list(x.shape)}, weight {list(weight.shape)}, counts "
            f"{list(counts.shape)}; expected [R, K], [E, N, K], [E]"
        )
    x, weight, bias = in_autocast(x, weight, bias)
    check_operands(
        "grouped_linear", ("share",), x=(x, None), weight=(weight, None),
        bias=(bias, weight.shape[:2]), share=(share, x.shape[:1]),
    )  # fmt: skip
    check_counts("grouped_linear", "counts", counts, weight.shape[:1], x)
    check_choice("grouped_linear", "precision", precision, PRECISIONS)
    y: Tensor = grouped_forward(x, weight, counts, bias, share, precision)
    return y
