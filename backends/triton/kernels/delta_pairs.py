"""What the rows of a chunk read of each other, and the inverse that a delta rule needs of it.

With a factor per head and token, or none. A program computes one chunk: all are independent. The
inverse T of I + A, A being beta (K K^T) exp(a_i - a_j) below the diagonal, is made of products: the
inverse of two blocks on the diagonal and what couples them, X - X L X, from single rows up to the
chunk. Source: see `delta_reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.linear_attention import decay_parts
from regraft.backends.triton.kernels.operators import wrap_triton


@triton.jit
def tf32_part(x):
    """Returns f32 whose mantissas end behind 10 bits: products of TF32 take it as it is."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def unit_inverse_tile(lower, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """Returns (I + lower)^-1 of a tile of 2^LEVELS rows that is 0 on the diagonal and above.

    Where keys are alike, errors of products grow from block to block: those of TF32, at rates of
    1.9, to 6 times what rounding the inverse to bf16 costs, and to 60 times of f16. A step of
    Newton's, X + X (I - (I + lower) X), whose rest has the digits of f32, takes them below it.
    """
    ROWS: tl.constexpr = lower.shape[0]
    r = tl.arange(0, ROWS)
    row, column = r[:, None], r[None, :]
    inverse = tl.where(row == column, 1.0, 0.0)
    inverse -= tl.where(row // 2 == column // 2, lower, 0.0)
    for level in tl.static_range(1, LEVELS):
        couples = (row >> level == (column >> level) + 1) & ((column >> level) % 2 == 0)
        held = tl.where(couples, lower, 0.0)
        moved = tl.dot(inverse, held, input_precision=PRECISION)
        inverse -= tl.dot(moved, inverse, input_precision=PRECISION)
    if PRECISION == "tf32":
        inverse = tf32_part(inverse)
        high = tf32_part(lower)
        rest = tl.where(row == column, 1.0, 0.0) - inverse
        rest -= tl.dot(high, inverse, input_precision=PRECISION)
        rest -= tl.dot(lower - high, inverse, input_precision=PRECISION)
        inverse += tl.dot(inverse, rest, input_precision=PRECISION)
    return inverse


@triton.jit
def delta_pairs_kernel(
    q_ptr, k_ptr, decay_ptr, beta_ptr, pairs_ptr, inverse_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    H, T, D,
    HAS_DECAY: tl.constexpr,
    HAS_BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    STATE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes both matrices [BLOCK_M, BLOCK_M] of one chunk of a head."""
    part, plane = part_and_plane(tl.cdiv(T, BLOCK_M))
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    place = plane.to(tl.int64)
    c = tl.arange(0, BLOCK_M)
    row = part * BLOCK_M + c
    inside = row < T
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    q_rows = q_base + row.to(tl.int64)[:, None] * q_row_stride
    k_rows = k_base + row.to(tl.int64)[:, None] * k_row_stride
    products = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    alike = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for start in range(0, D, BLOCK_K):
        d = start + tl.arange(0, BLOCK_K)
        mask = inside[:, None] & (d < D)[None, :]
        q = tl.load(q_rows + d[None, :], mask=mask, other=0.0)
        k = tl.load(k_rows + d[None, :], mask=mask, other=0.0)
        products = tl.dot(q, tl.trans(k), products, input_precision=PRECISION)
        if HAS_BETA:
            alike = tl.dot(k, tl.trans(k), alike, input_precision=PRECISION)
    is_before = c[None, :] <= c[:, None]
    share = tl.where(is_before, 1.0, 0.0)
    if HAS_DECAY:
        g = tl.load(decay_ptr + place * T + row, mask=inside, other=0.0)
        coarse, fine = decay_parts(g)
        a, b = tl.cumsum(coarse, axis=0), tl.cumsum(fine, axis=0)
        between = (a[:, None] - a[None, :]) + (b[:, None] - b[None, :])
        # hidden pairs would overflow: their exponents are positive
        share = tl.exp(tl.where(is_before, between, float("-inf")))
    chunk = place * tl.cdiv(T, BLOCK_M) + part
    tile = chunk * BLOCK_M * BLOCK_M + c[:, None] * BLOCK_M + c[None, :]
    products = tl.where(is_before, products * share, 0.0)
    tl.store(pairs_ptr + tile, products.to(pairs_ptr.dtype.element_ty))
    if HAS_BETA:
        beta = tl.load(beta_ptr + place * T + row, mask=inside, other=0.0).to(tl.float32)
        lower = tl.where(c[None, :] < c[:, None], alike * share * beta[:, None], 0.0)
        inverse = unit_inverse_tile(lower, LEVELS, STATE_PRECISION)
        tl.store(inverse_ptr + tile, inverse.to(inverse_ptr.dtype.element_ty))


def launch_delta_pairs(
    q: Tensor, k: Tensor, decay: Tensor | None, beta: Tensor | None, chunk: int, warps: int,
    precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Returns what rows read of each other [B, H, N, C, C], and T of a delta rule.

    Args:
        q: Queries [B, H, T, D]; elements of a row are adjacent.
        k: Keys.
        decay: Logarithms [B, H, T], contiguous.
        beta: Rates [B, H, T], contiguous.
        chunk: C.
        warps: Of a program.
        precision: Of products of f32.
    """
    B, H, T, D = q.shape
    num_chunks = triton.cdiv(T, chunk)
    pairs = torch.empty((B, H, num_chunks, chunk, chunk), dtype=q.dtype, device=q.device)
    inverse = None if beta is None else torch.empty_like(pairs)
    if T:
        wrap_triton(delta_pairs_kernel)[(num_chunks * B * H,)](
            q, k, *(q if x is None else x for x in (decay, beta)), pairs,
            pairs if inverse is None else inverse,
            *q.stride()[:3], *k.stride()[:3], H, T, D,
            HAS_DECAY=decay is not None,
            HAS_BETA=beta is not None,
            PRECISION=precision,
            STATE_PRECISION=precision if q.dtype == torch.float32 else "tf32",
            BLOCK_M=chunk,
            LEVELS=chunk.bit_length() - 1,
            BLOCK_K=32 if q.dtype == torch.float32 else 64,
            num_warps=warps,
            num_stages=2,
        )  # fmt: skip
    return pairs, inverse
