"""Tiles of products: which one a program has, the sum over inputs, and what follows it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_in_order(tiles_m, tiles_n, GROUP: tl.constexpr):
    """Returns which tile of a product a program has: those at work share what the cache holds."""
    per_group = GROUP * tiles_n
    group = tl.program_id(0) // per_group
    height = min(tiles_m - group * GROUP, GROUP)
    within = tl.program_id(0) % per_group
    return group * GROUP + within % height, within // height


@triton.jit
def place_of_tile(num_rows, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Returns the rows and the columns of the result that a program computes."""
    tile_m, tile_n = tile_in_order(tl.cdiv(num_rows, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    return m, n


@triton.jit
def add_product(total, x_tile, w_tile, K, w_stride, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """Returns total + x @ w, BLOCK_K inputs at a time.

    Args:
        total: f32 [M, N].
        x_tile: Pointers [M, BLOCK_K] to the first inputs of x, whose inputs are adjacent.
        w_tile: Pointers [BLOCK_K, N] to those of w.
        K: How many inputs there are.
        w_stride: Between two inputs of w.
        PRECISION: Of f32 products.
        BLOCK_K: Inputs of a step.
    """
    k = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_tile, mask=k[None, :] < K - start, other=0.0)
        w = tl.load(w_tile, mask=k[:, None] < K - start, other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K * w_stride
    return total


@triton.jit
def with_bias(total, bias_ptr, n, N):
    """Returns total plus the biases of columns n."""
    return total + tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_tile(y_ptr, tile, m, n, M, N):
    """Writes rows m below M and columns n of a matrix of N columns."""
    place = y_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    tl.store(place, tile.to(y_ptr.dtype.element_ty), mask=mask)
