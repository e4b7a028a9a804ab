"""Gradients by rows that were multiplied by experts' matrices of few bits: dy[r] @ w[e].T.

Weights are unpacked in the kernel, and scaled before the product: the sum is over outputs, which
have scales each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.coded_matrices import unpacked_matrices
from regraft.backends.triton.kernels.configs import config_for, tile_options
from regraft.backends.triton.kernels.expert_rows import rows_of_expert, tiles_of
from regraft.backends.triton.kernels.grouped import reference_grouped
from regraft.backends.triton.kernels.low_bit import (
    code_values,
    coded_operands,
    coding_options,
    load_codes,
)
from regraft.backends.triton.kernels.operators import block_of, operator, rows_of, wrap_triton
from regraft.backends.triton.kernels.product_tiles import store_tile


@triton.jit
def grouped_low_bit_gradient_kernel(
    dy_ptr, codes_ptr, scale_ptr, zeros_ptr, table_ptr, counts_ptr, dx_ptr,
    num_rows, experts, N, K, dy_stride, codes_expert_stride, scale_expert_stride, group, zero,
    BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """Writes a tile [BLOCK_M, BLOCK_K] of dy @ w.T of one expert's rows."""
    expert, first, last = rows_of_expert(
        counts_ptr, tl.program_id(1), experts, num_rows, BLOCK_M, EXPERTS
    )
    if first < last:
        row = first + tl.arange(0, BLOCK_M)
        k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
        total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        if expert < experts:
            inner = tl.where(row < last, row, first).to(tl.int64)
            dy_rows = dy_ptr + inner[:, None] * dy_stride
            place = expert.to(tl.int64)
            own_codes = codes_ptr + place * codes_expert_stride
            own_scale = scale_ptr + place * scale_expert_stride
            own_zeros = zeros_ptr + place * scale_expert_stride
            part = (k // group).to(tl.int64)[:, None] * N
            for start in range(0, N, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                dy = tl.load(dy_rows + n[None, :], mask=(n < N)[None, :], other=0.0)
                codes = load_codes(own_codes, k, n, K, N, N, BITS)
                mask = (k < K)[:, None] & (n < N)[None, :]
                if HAS_ZEROS:
                    zeros = tl.load(own_zeros + part + n[None, :], mask=mask, other=0).to(tl.int16)
                else:
                    zeros = zero
                # scales differ along the sum: weights are scaled before it, and rounded as dy is
                scale = tl.load(own_scale + part + n[None, :], mask=mask, other=0.0).to(tl.float32)
                w = code_values(codes, zeros, table_ptr, HAS_TABLE).to(tl.float32) * scale
                w = tl.trans(w.to(dy.dtype))
                total = tl.dot(dy, w, total, input_precision=PRECISION)
        store_tile(dx_ptr, total, row, k, last, K)


def reference_grouped_low_bit_gradient(
    dy: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, zero: int, bits: int, group: int, size: int, precision: str,
) -> Tensor:  # fmt: skip
    """Returns the gradient by the rows x, [R, size]."""
    w = unpacked_matrices(codes, scale, zeros, table, zero, bits, group, size, dy.dtype)
    return reference_grouped(dy, w.transpose(1, 2), counts, None, None, precision)


def _allocate_grouped_low_bit_gradient(
    dy: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, zero: int, bits: int, group: int, size: int, precision: str,
) -> Tensor:  # fmt: skip
    return torch.empty((dy.shape[0], size), dtype=dy.dtype, device=dy.device)


def _launch_grouped_low_bit_gradient(
    dy: Tensor, codes: Tensor, scale: Tensor, zeros: Tensor | None, table: Tensor | None,
    counts: Tensor, zero: int, bits: int, group: int, size: int, precision: str,
) -> Tensor:  # fmt: skip
    dx = torch.empty((dy.shape[0], size), dtype=dy.dtype, device=dy.device)
    if dx.numel() == 0:
        return dx
    dy, counts = rows_of(dy), counts.contiguous()
    coded = coded_operands(codes.contiguous(), scale, zeros, table)
    (R, N), E = dy.shape, codes.shape[0]
    config = config_for("grouped_low_bit_gradient", dy, R // E)
    grid = (triton.cdiv(size, config["k"]), tiles_of(R, E, config["m"]))
    wrap_triton(grouped_low_bit_gradient_kernel)[grid](
        dy, *coded, counts, dx, R, E, N, size, dy.stride(0), coded[0].stride(0), coded[1].stride(0),
        group, zero,
        **coding_options(bits, zeros, table),
        PRECISION=precision,
        EXPERTS=block_of(E),
        **tile_options(config),
    )  # fmt: skip
    return dx


grouped_low_bit_gradient = operator(
    "grouped_low_bit_gradient",
    _launch_grouped_low_bit_gradient,
    allocate=_allocate_grouped_low_bit_gradient,
    reference=reference_grouped_low_bit_gradient,
    kernel=grouped_low_bit_gradient_kernel,
)
