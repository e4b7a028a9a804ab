"""Products of rows that are sorted by expert with matrices of few bits, unpacked where multiplied.

y[r] = share[r] * (x[r] @ w[e] + bias[e]) for the rows r of expert e, where w[e] [K, N] is what its
codes stand for: (code - zero) * scale or table[code] * scale. Tiles of rows are those of
`grouped_linear`, codes lie and are scaled as in `low_bit_linear`, so that few tokens read a quarter
of the bytes. Codes have no gradient; that by x reads them once more, in its own kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from regraft.backends.triton.kernels.coded_matrices import (
    CodedMatrices,
    check_coded,
    unpacked_matrices,
)
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.grouped import (
    reference_grouped,
    rows_of_expert,
    sum_by_expert,
    tiles_of,
)
from regraft.backends.triton.kernels.grouped_low_bit_gradient import grouped_low_bit_gradient
from regraft.backends.triton.kernels.low_bit import add_low_bit_product, scale_outputs, stepped_tile
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of


@triton.jit
def grouped_low_bit_kernel(
    x_ptr, codes_ptr, scale_ptr, zeros_ptr, table_ptr, counts_ptr, bias_ptr, share_ptr, y_ptr,
    num_rows, experts, N, K, x_stride, codes_expert_stride, scale_expert_stride, group, zero,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
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
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if expert < experts:
            # rows beyond the end are read from within, and never stored
            inner = tl.where(row < last, row, first).to(tl.int64)
            x_rows = x_ptr + inner[:, None] * x_stride
            place = expert.to(tl.int64)
            own_codes = codes_ptr + place * codes_expert_stride
            own_scale = scale_ptr + place * scale_expert_stride
            own_zeros = zeros_ptr + place * scale_expert_stride
            for begin in range(0, K, BLOCK_K * STEPS):
                for step in tl.static_range(STEPS):
                    start = begin + step * BLOCK_K
                    k = start + tl.arange(0, BLOCK_K)
                    x = tl.load(x_rows + k[None, :], mask=(k < K)[None, :], other=0.0)
                    total = add_low_bit_product(
                        total, x, own_codes, own_scale, own_zeros, table_ptr, start, k, n, K, N, N,
                        group, zero, BITS, GROUPED, HAS_ZEROS, HAS_TABLE, PRECISION,
                    )  # fmt: skip
            if not GROUPED:
                total = scale_outputs(total, own_scale, n, N)
            if HAS_BIAS:
                bias = tl.load(bias_ptr + place * N + n, mask=n < N, other=0.0)
                total += bias.to(tl.float32)[None, :]
            if HAS_SHARE:
                share = tl.load(share_ptr + row, mask=row < last, other=0.0)
                total = total * share.to(tl.float32)[:, None]
        out = y_ptr + row.to(tl.int64)[:, None] * N + n[None, :]
        mask = (row < last)[:, None] & (n < N)[None, :]
        tl.store(out, total.to(y_ptr.dtype.element_ty), mask=mask)


def reference_grouped_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, bias: Tensor | None, share: Tensor | None, zero: int, bits: int, group: int,
    precision: str,
) -> Tensor:  # fmt: skip
    """Returns x [R, K] times what each row's codes stand for: [R, N]."""
    w = unpacked_matrices(codes, scale, zeros, table, zero, bits, group, x.shape[1], x.dtype)
    return reference_grouped(x, w, counts, bias, share, precision)


def _allocate_grouped_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, bias: Tensor | None, share: Tensor | None, zero: int, bits: int, group: int,
    precision: str,
) -> Tensor:  # fmt: skip
    return torch.empty((x.shape[0], codes.shape[2]), dtype=x.dtype, device=x.device)


def _launch_grouped_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, bias: Tensor | None, share: Tensor | None, zero: int, bits: int, group: int,
    precision: str,
) -> Tensor:  # fmt: skip
    y = torch.empty((x.shape[0], codes.shape[2]), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x, counts, codes, scale = (
        rows_of(x),
        counts.contiguous(),
        codes.contiguous(),
        scale.contiguous(),
    )
    (R, K), (E, _, N) = x.shape, codes.shape
    config = config_for("grouped_low_bit", x, R // E)
    grid = (triton.cdiv(N, config["n"]), tiles_of(R, E, config["m"]))
    wrap_triton(grouped_low_bit_kernel)[grid](
        x, codes, scale,
        codes if zeros is None else zeros.contiguous(),
        scale if table is None else table.contiguous(),
        counts,
        x if bias is None else bias.contiguous(),
        x if share is None else share.contiguous(),
        y, R, E, N, K, x.stride(0), codes.stride(0), scale.stride(0), group, zero,
        BITS=bits,
        GROUPED=group < K,
        HAS_ZEROS=zeros is not None,
        HAS_TABLE=table is not None,
        HAS_BIAS=bias is not None,
        HAS_SHARE=share is not None,
        PRECISION=precision,
        EXPERTS=block_of(E),
        **stepped_tile(config, group, K),
    )  # fmt: skip
    return y


grouped_low_bit_forward = operator(
    "grouped_low_bit_linear",
    _launch_grouped_low_bit,
    allocate=_allocate_grouped_low_bit,
    reference=reference_grouped_low_bit,
    kernel=grouped_low_bit_kernel,
)


def _keep_grouped_low_bit(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, zero, bits, group, precision = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings, ctx.precision = (zero, bits, group), precision


def _differentiate_grouped_low_bit(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, *coded, counts, bias, share = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = dbias = dshare = None
    scaled = dy if share is None else (dy * share.unsqueeze(1)).to(dy.dtype)
    if needs[0]:
        dx = grouped_low_bit_gradient(
            scaled, *coded, counts, *ctx.settings, x.shape[1], ctx.precision
        )
    if bias is not None and needs[6]:
        dbias = sum_by_expert(scaled, counts).to(bias.dtype)
    if share is not None and needs[7]:
        y = grouped_low_bit_forward(x, *coded, counts, bias, None, *ctx.settings, ctx.precision)
        dshare = (dy * y).sum(1, dtype=share.dtype)
    return dx, None, None, None, None, None, dbias, dshare, None, None, None, None


grouped_low_bit_forward.register_autograd(
    _differentiate_grouped_low_bit, setup_context=_keep_grouped_low_bit
)


def grouped_low_bit_linear(
    x: Tensor,
    matrices: CodedMatrices,
    counts: Tensor,
    bias: Tensor | None = None,
    share: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Returns [R, N]: every row of x times what the codes of its expert stand for.

    Args:
        x: [R, K], sorted by expert: f32, f16 or bf16.
        matrices: One [K, N] per expert. They have no gradient.
        counts: i64[E], rows of every expert; rows behind them are nobody's, and become zeros.
        bias: [E, N], added to the rows of each expert.
        share: [R], a factor of each row's result.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.

    Raises:
        ValueError: Sizes differ, or groups are no multiples of 16.
    """
    check_coded("grouped_low_bit_linear", x.shape[1], matrices, counts)
    codes, scale, zeros, table, bits, group, zero = matrices
    y: Tensor = grouped_low_bit_forward(
        x, codes, scale, zeros, table, counts, bias, share, zero, bits, group or x.shape[1],
        precision,
    )  # fmt: skip
    return y
