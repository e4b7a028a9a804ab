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

from regraft.backends.triton.kernels.coded_matrices import (
    CodedMatrices,
    check_coded,
    unpacked_matrices,
)
from regraft.backends.triton.kernels.configs import config_for
from regraft.backends.triton.kernels.expert_rows import (
    bias_gradient,
    rows_of_expert,
    scaled_rows,
    tiles_of,
)
from regraft.backends.triton.kernels.grouped import finished_rows, reference_grouped
from regraft.backends.triton.kernels.grouped_low_bit_gradient import grouped_low_bit_gradient
from regraft.backends.triton.kernels.low_bit import (
    coded_operands,
    coding_options,
    low_bit_product,
    stepped_tile,
)
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import store_tile


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
            of_scale = place * scale_expert_stride
            total = low_bit_product(
                total, x_rows, codes_ptr + place * codes_expert_stride, scale_ptr + of_scale,
                zeros_ptr + of_scale, table_ptr, n, K, N, N, group, zero, BITS, GROUPED, HAS_ZEROS,
                HAS_TABLE, PRECISION, BLOCK_K, STEPS,
            )  # fmt: skip
            total = finished_rows(
                total, bias_ptr + place * N, share_ptr, row, last, n, N, HAS_BIAS, HAS_SHARE
            )
        store_tile(y_ptr, total, row, n, last, N)


def reference_grouped_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, bias: Tensor | None, share: Tensor | None, zero: int, bits: int, group: int,
    precision: str,
) -> Tensor:  # fmt: skip
    """Returns x [R, K] times what each row's codes stand for: [R, N]."""
    w = unpacked_matrices(codes, scale, zeros, table, zero, bits, group, x.shape[1], x.dtype)
    return reference_grouped(x, w, counts, bias, share, precision)


def _allocate_grouped_low_bit(x: Tensor, codes: Tensor, *others: object) -> Tensor:
    return torch.empty((x.shape[0], codes.shape[2]), dtype=x.dtype, device=x.device)


def _launch_grouped_low_bit(
    x: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, bias: Tensor | None, share: Tensor | None, zero: int, bits: int, group: int,
    precision: str,
) -> Tensor:  # fmt: skip
    y = _allocate_grouped_low_bit(x, codes)
    if y.numel() == 0:
        return y
    x, counts = rows_of(x), counts.contiguous()
    coded = coded_operands(codes.contiguous(), scale, zeros, table)
    (R, K), (E, _, N) = x.shape, codes.shape
    config = config_for("grouped_low_bit", x, R // E)
    grid = (triton.cdiv(N, config["n"]), tiles_of(R, E, config["m"]))
    wrap_triton(grouped_low_bit_kernel)[grid](
        x, *coded, counts,
        x if bias is None else bias.contiguous(),
        x if share is None else share.contiguous(),
        y, R, E, N, K, x.stride(0), coded[0].stride(0), coded[1].stride(0), group, zero,
        **coding_options(bits, zeros, table),
        GROUPED=group < K,
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
    dx = dshare = None
    scaled = scaled_rows(dy, share)
    if needs[0]:
        dx = grouped_low_bit_gradient(
            scaled, *coded, counts, *ctx.settings, x.shape[1], ctx.precision
        )
    dbias = bias_gradient(bias if needs[6] else None, scaled, counts)
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
