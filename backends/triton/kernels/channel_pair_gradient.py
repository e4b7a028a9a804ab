"""The gradient of what the rows of a chunk read of each other, with factors per channel.

The mirror of `channel_pairs_kernel`: of (x_i . y_j) exp(a_i - a_j), j <= i, by x and by y. A
program computes BLOCK_M rows of both, BLOCK_K channels wide; exponents are split in the same way.
Source: Yang et al. 2023 (GLA, secondary chunks).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.channel_pairs import BLOCK_ROWS, block_shares, later_sums
from regraft.backends.triton.kernels.operators import wrap_triton


@triton.jit
def channel_pair_gradient_kernel(
    pairs_ptr, x_ptr, y_ptr, decay_ptr, dx_ptr, dy_ptr,
    D,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_M rows of one chunk; all operands are f32 and contiguous, in whole chunks."""
    BLOCKS: tl.constexpr = CHUNK // BLOCK_M
    block = tl.program_id(0) % BLOCKS
    chunk = (tl.program_id(0) // BLOCKS).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    d = (tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    mask = (d < D) & (m >= 0)[:, None]
    first = chunk * CHUNK * D + m[:, None] * D + d
    own = first + block * BLOCK_M * D
    corner = pairs_ptr + chunk * CHUNK * CHUNK + m[:, None] * CHUNK + m[None, :]
    # within the block, pair by pair
    pairs = tl.load(corner + block * BLOCK_M * (CHUNK + 1))
    share = block_shares(decay_ptr + own, mask, m[None, :] <= m[:, None]) * pairs[:, :, None]
    x = tl.load(x_ptr + own, mask=mask, other=0.0)
    y = tl.load(y_ptr + own, mask=mask, other=0.0)
    dx = tl.sum(share * y[None, :, :], axis=1)
    dy = tl.sum(share * x[:, None, :], axis=0)
    g = tl.maximum(tl.load(decay_ptr + own, mask=mask, other=0.0), -128.0)
    # of blocks before it
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    gap = tl.zeros([1, BLOCK_K], tl.float32)
    for back in range(0, block):
        other = block - 1 - back
        there = first + other * BLOCK_M * D
        later = later_sums(decay_ptr + there, mask, BLOCK_M, D)
        held = tl.load(y_ptr + there, mask=mask, other=0.0) * tl.exp(later + gap)
        pairs = tl.load(corner + block * BLOCK_M * CHUNK + other * BLOCK_M)
        total = tl.dot(pairs, held, total, input_precision=PRECISION)
        given = tl.maximum(tl.load(decay_ptr + there, mask=mask, other=0.0), -128.0)
        gap += tl.sum(given, axis=0)[None, :]
    dx += total * tl.exp(tl.cumsum(g, axis=0))
    tl.store(dx_ptr + own, dx, mask=mask)
    # of blocks after it
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    gap = tl.zeros([1, BLOCK_K], tl.float32)
    for other in range(block + 1, BLOCKS):
        there = first + other * BLOCK_M * D
        given = tl.maximum(tl.load(decay_ptr + there, mask=mask, other=0.0), -128.0)
        since = tl.exp(tl.cumsum(given, axis=0) + gap)
        read = tl.load(x_ptr + there, mask=mask, other=0.0) * since
        pairs = tl.load(corner + other * BLOCK_M * CHUNK + block * BLOCK_M)
        total = tl.dot(tl.trans(pairs), read, total, input_precision=PRECISION)
        gap += tl.sum(given, axis=0)[None, :]
    dy += total * tl.exp(later_sums(decay_ptr + own, mask, BLOCK_M, D))
    tl.store(dy_ptr + own, dy, mask=mask)


def launch_channel_pair_gradient(
    pairs: Tensor, x: Tensor, y: Tensor, decay: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Returns what `pair_sums_gradient` of `delta_reference` does, for f32 [B, H, N, C, D]."""
    B, H, N, chunk, D = x.shape
    operands = [item.contiguous() for item in (pairs, x, y, decay)]
    dx, dy = torch.empty_like(operands[1]), torch.empty_like(operands[2])
    width = 16
    if N:
        grid = (B * H * N * (chunk // BLOCK_ROWS), triton.cdiv(D, width))
        wrap_triton(channel_pair_gradient_kernel)[grid](
            *operands, dx, dy, D,
            PRECISION=precision,
            CHUNK=chunk,
            BLOCK_M=BLOCK_ROWS,
            BLOCK_K=width,
            num_warps=4,
            num_stages=1,
        )  # fmt: skip
    return dx, dy
