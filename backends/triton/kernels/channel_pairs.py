"""What the rows of a chunk read of each other where every channel has a factor of its own.

exp(a_i - a_j) is no product of two factors that both fit into f32 wherever a falls fast. A chunk
is cut into blocks of BLOCK_M rows: between two blocks the exponent is split at the start of the
later one, where both parts are at most 0, and the rest is a product of matrices. Within a block
exponents are formed pair by pair. A program computes BLOCK_M rows of one chunk.
Source: Yang et al. 2023 (GLA, secondary chunks).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import part_and_plane
from regraft.backends.triton.kernels.delta_pairs import unit_inverse_tile
from regraft.backends.triton.kernels.linear_attention import decay_parts
from regraft.backends.triton.kernels.operators import block_of, wrap_triton
from regraft.backends.triton.kernels.parted_dot import parted_dot

BLOCK_ROWS = 16
"""Rows between which exponents are formed pair by pair: the fewest that matrices multiply."""


@triton.jit
def later_sums(decay_rows, has_next, BLOCK_M: tl.constexpr, D):
    """Returns sums of logarithms [BLOCK_M, d] of the rows after each, within the block.

    Args:
        decay_rows: Where the rows' logarithms stand.
        has_next: Which of the rows after them there are.
        BLOCK_M: Rows of the block.
        D: Elements of a row.
    """
    m = tl.arange(0, BLOCK_M)[:, None]
    # of the last row, what follows is another block's
    g = tl.load(decay_rows + D, mask=has_next & (m + 1 < BLOCK_M), other=0.0).to(tl.float32)
    return tl.cumsum(tl.maximum(g, -128.0), axis=0, reverse=True)


@triton.jit
def block_shares(decay_rows, mask, is_before):
    """Returns exp(a_i - a_j) [i, j, d] of the rows of a block, 0 where `is_before` is not."""
    coarse, fine = decay_parts(tl.load(decay_rows, mask=mask, other=0.0))
    a, b = tl.cumsum(coarse, axis=0), tl.cumsum(fine, axis=0)
    between = (a[:, None, :] - a[None, :, :]) + (b[:, None, :] - b[None, :, :])
    return tl.exp(tl.where(is_before[:, :, None], between, float("-inf")))


@triton.jit
def channel_pairs_kernel(
    q_ptr, k_ptr, decay_ptr, beta_ptr, pairs_ptr, alike_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    H, T, D,
    HAS_BETA: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_M rows of what a chunk's rows read of each other, and of A of a delta rule."""
    BLOCKS: tl.constexpr = CHUNK // BLOCK_M
    parts = tl.cdiv(T, CHUNK) * BLOCKS
    part, plane = part_and_plane(parts)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    place = plane.to(tl.int64)
    block = part % BLOCKS
    first = (part // BLOCKS) * CHUNK
    m = tl.arange(0, BLOCK_M)
    row = (first + block * BLOCK_M + m).to(tl.int64)
    inside = (row < T)[:, None]
    q_rows = q_ptr + batch * q_batch_stride + head * q_head_stride + row[:, None] * q_row_stride
    k_base = k_ptr + batch * k_batch_stride + head * k_head_stride
    decay_base = decay_ptr + place * T * D
    k_rows, decay_rows = k_base + row[:, None] * k_row_stride, decay_base + row[:, None] * D
    is_before = m[None, :] <= m[:, None]
    products = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    alike = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for start in range(0, D, BLOCK_K):
        x = (start + tl.arange(0, BLOCK_K))[None, :]
        mask = inside & (x < D)
        q = tl.load(q_rows + x, mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_rows + x, mask=mask, other=0.0).to(tl.float32)
        held = block_shares(decay_rows + x, mask, is_before) * k[None, :, :]
        products += tl.sum(q[:, None, :] * held, axis=2)
        if HAS_BETA:
            alike += tl.sum(k[:, None, :] * held, axis=2)
    rate = tl.zeros([BLOCK_M], tl.float32)
    if HAS_BETA:
        rate += tl.load(beta_ptr + place * T + row, mask=row < T, other=0.0).to(tl.float32)
        alike = tl.where(m[None, :] < m[:, None], alike, 0.0) * rate[:, None]
    # tiles of a row of blocks
    line = (place * parts + part) * BLOCK_M * CHUNK
    tile = line + m[:, None] * CHUNK + m[None, :]
    tl.store(pairs_ptr + tile + block * BLOCK_M, products.to(pairs_ptr.dtype.element_ty))
    if HAS_BETA:
        tl.store(alike_ptr + tile + block * BLOCK_M, alike)
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = inside & (d < D)
    q = tl.load(q_rows + d, mask=mask, other=0.0)
    kind = q.dtype
    own = tl.load(decay_rows + d, mask=mask, other=0.0).to(tl.float32)
    since = tl.exp(tl.cumsum(tl.maximum(own, -128.0), axis=0))
    read = (q.to(tl.float32) * since).to(kind)
    seen = read
    if HAS_BETA:
        seen = (tl.load(k_rows + d, mask=mask, other=0.0).to(tl.float32) * since).to(kind)
    gap = tl.zeros([1, BLOCK_D], tl.float32)
    for back in range(0, block):
        other = block - 1 - back
        above = row - (back + 1) * BLOCK_M
        there = (above < T)[:, None] & (d < D)
        rows = decay_base + above[:, None] * D + d
        later = later_sums(rows, (above + 1 < T)[:, None] & (d < D), BLOCK_M, D)
        k = tl.load(k_base + above[:, None] * k_row_stride + d, mask=there, other=0.0)
        held = tl.trans((k.to(tl.float32) * tl.exp(later + gap)).to(kind))
        empty = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
        products = parted_dot(read, held, empty, PRECISION)
        tl.store(pairs_ptr + tile + other * BLOCK_M, products.to(pairs_ptr.dtype.element_ty))
        if HAS_BETA:
            alike = parted_dot(seen, held, empty, PRECISION) * rate[:, None]
            tl.store(alike_ptr + tile + other * BLOCK_M, alike)
        g = tl.load(rows, mask=there, other=0.0).to(tl.float32)
        gap += tl.sum(tl.maximum(g, -128.0), axis=0)[None, :]
    for other in range(block + 1, BLOCKS):
        empty = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
        tl.store(pairs_ptr + tile + other * BLOCK_M, empty.to(pairs_ptr.dtype.element_ty))
        if HAS_BETA:
            tl.store(alike_ptr + tile + other * BLOCK_M, empty)


@triton.jit
def unit_inverse_kernel(
    lower_ptr, inverse_ptr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, LEVELS: tl.constexpr
):
    """Writes (I + lower)^-1 of one chunk."""
    c = tl.arange(0, BLOCK_M)
    tile = tl.program_id(0).to(tl.int64) * BLOCK_M * BLOCK_M + c[:, None] * BLOCK_M + c[None, :]
    inverse = unit_inverse_tile(tl.load(lower_ptr + tile), LEVELS, PRECISION)
    tl.store(inverse_ptr + tile, inverse.to(inverse_ptr.dtype.element_ty))


def launch_channel_pairs(
    q: Tensor, k: Tensor, decay: Tensor, beta: Tensor | None, chunk: int, warps: int,
    precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Returns what `launch_delta_pairs` does; logarithms are [B, H, T, D], contiguous."""
    B, H, T, D = q.shape
    num_chunks = triton.cdiv(T, chunk)
    pairs = torch.empty((B, H, num_chunks, chunk, chunk), dtype=q.dtype, device=q.device)
    inverse = None if beta is None else torch.empty_like(pairs)
    alike = pairs if beta is None else torch.empty_like(pairs, dtype=torch.float32)
    if T == 0:
        return pairs, inverse
    wrap_triton(channel_pairs_kernel)[(num_chunks * (chunk // BLOCK_ROWS) * B * H,)](
        q, k, decay, q if beta is None else beta, pairs, alike,
        *q.stride()[:3], *k.stride()[:3], H, T, D,
        HAS_BETA=beta is not None,
        PRECISION=precision,
        CHUNK=chunk,
        BLOCK_M=BLOCK_ROWS,
        BLOCK_D=block_of(D),
        BLOCK_K=8,
        num_warps=8,
        num_stages=1,
    )  # fmt: skip
    if inverse is not None:
        wrap_triton(unit_inverse_kernel)[(B * H * num_chunks,)](
            alike, inverse,
            PRECISION=precision if q.dtype == torch.float32 else "tf32",
            BLOCK_M=chunk,
            LEVELS=chunk.bit_length() - 1,
            num_warps=warps,
        )  # fmt: skip
    return pairs, inverse
