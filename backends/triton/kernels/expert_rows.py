"""Rows that are sorted by expert: whose they are, in kernels and on the host.

A tile of rows belongs to one expert: each program finds its own from the counts, so that nothing
waits for them to reach the host. Rows behind the last expert's are nobody's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rows_of_expert(counts_ptr, tile, num, num_rows, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    """Returns a tile's expert (`num`: nobody's), its first row, and the end of the expert's."""
    e = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + e, mask=e < num, other=0).to(tl.int32)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    is_before = (tl.cumsum(tiles, axis=0) <= tile) & (e < num)
    expert = tl.sum(is_before.to(tl.int32), axis=0)
    before = tl.sum(tl.where(e < expert, counts, 0), axis=0)
    first = before + (tile - tl.sum(tl.where(e < expert, tiles, 0), axis=0)) * BLOCK_M
    last = before + tl.sum(tl.where(e == expert, counts, 0), axis=0)
    return expert, first, tl.where(expert < num, last, num_rows)


def tiles_of(num_rows: int, experts: int, height: int) -> int:
    """Returns the most tiles that rows of `experts` and of nobody make."""
    return num_rows // height + min(experts + 1, num_rows)


def parts_of(x: Tensor, counts: Tensor) -> list[Tensor]:
    """Returns the rows of every expert, and nobody's as the last part."""
    sizes = counts.tolist()
    return list(x.split([*sizes, x.shape[0] - sum(sizes)]))


def owners_of(counts: Tensor, num_rows: int) -> Tensor:
    """Returns the expert of each row; rows of nobody have the number of experts."""
    rows = torch.arange(num_rows, device=counts.device)
    return torch.searchsorted(counts.cumsum(0), rows, right=True)


def scaled_rows(x: Tensor, share: Tensor | None) -> Tensor:
    """Returns x [R, N] times each row's share [R], in the dtype of x."""
    return x if share is None else (x * share.unsqueeze(1)).to(x.dtype)


def sum_by_expert(x: Tensor, counts: Tensor) -> Tensor:
    """Returns the sums [E, N] of the rows x [R, N] of every expert."""
    owners = owners_of(counts, x.shape[0])
    sums = torch.zeros((counts.shape[0] + 1, x.shape[1]), dtype=x.dtype, device=x.device)
    return sums.index_add(0, owners, x)[:-1]


def bias_gradient(bias: Tensor | None, dy: Tensor | None, counts: Tensor) -> Tensor | None:
    """Returns the gradient by biases [E, N] of that by rows [R, N], where there are both."""
    return None if bias is None or dy is None else sum_by_expert(dy, counts).to(bias.dtype)


def token_gradient(d: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
    """Returns the gradient by x [T, K] of that by its rows [R]; without `rows` they are x."""
    return d if rows is None else torch.zeros_like(x).index_add(0, rows, d)
