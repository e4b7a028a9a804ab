"""Attention in tiles, forward: the scores are never in memory.

out = weights @ v. Source: Dao et al. 2022 (FlashAttention: the running maximum and sum), Dao 2023
(FlashAttention-2: the order of the loops). Scores are scale * q k^T, then softcap * tanh(score /
softcap) where there is a cap, then a mask (bool hides, floats are added). Query s stands at key
position s + offset and sees `left` keys back and `right` ahead (-1: all); lengths hide the keys at
and after them. Sinks are one more score per head, without a value. A row without keys gives zeros.
Weights are the softmax, or clip((high - low) * softmax + low, 0, 1) (Bondarenko et al. 2023,
clipped softmax), which needs the sums first and so goes through the keys twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import (
    before_difference,
    behind_difference,
    columns_tile,
    key_range,
    offset_and_length,
    part_and_plane,
    rows_tile,
    score_unit,
    softmax_tile,
    tile_scores,
)
from regraft.backends.triton.kernels.configs import Config, config_for
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, offsets_ptr, sinks_ptr, out_ptr, sums_ptr,
    q_batch_stride, q_head_stride, q_row_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_row_stride, mask_column_stride,
    H, group, S, T, D, E, offset, left, right, scale, softcap, low, high,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CLIPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_M rows of one head, their maxima and the logarithms of their sums."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    low = tl.cast(low, tl.float32)
    high = tl.cast(high, tl.float32)
    part, plane = part_and_plane(tl.cdiv(S, BLOCK_M), RIGHT)
    batch = (plane // H).to(tl.int64)
    head = (plane % H).to(tl.int64)
    first_row = part * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    offset, length = offset_and_length(
        offsets_ptr, lengths_ptr, batch, offset, T, HAS_OFFSETS, HAS_LENGTHS
    )
    start, end = key_range(first_row, BLOCK_M, T, length, offset, left, right, LEFT, RIGHT, BLOCK_N)
    q_base = q_ptr + batch * q_batch_stride + head * q_head_stride
    k_base = k_ptr + batch * k_batch_stride + head // group * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + head // group * v_head_stride
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    q = rows_tile(q_base, row, q_row_stride, d, S, D)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SINKS:
        largest = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks_ptr + head).to(tl.float32)
        total += 1.0
    before, behind = before_difference(MASK), behind_difference(MASK)
    top = largest * before
    unit = score_unit(scale, MASK, SOFTCAP)
    unit2 = unit * before
    sums = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for first in range(start, end, BLOCK_N):
        column = first + n
        k = columns_tile(k_base, column, k_row_stride, d, T, D)
        s, _ = tile_scores(
            q, k, row[:, None], column[None, :], first_row, first, S, end, offset, left, right,
            scale, softcap, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT,
            SOFTCAP, PRECISION,
        )  # fmt: skip
        largest = tl.maximum(largest, tl.max(s, axis=1) * unit)
        found = largest * before
        # no key so far: subtracting -inf from -inf would give NaN where zero is meant
        base = tl.where(found == float("-inf"), 0.0, found)
        shrink = tl.exp2((top - base) * behind)
        p = tl.exp2((s * unit2 - base[:, None]) * behind)
        total = total * shrink + tl.sum(p, axis=1)
        top = found
        if not CLIPPED:
            v = rows_tile(v_base, column, v_row_stride, e, end, E)
            sums = sums * shrink[:, None]
            sums = tl.dot(p.to(v.dtype), v, sums, input_precision=PRECISION)
    is_empty = total == 0.0
    largest = tl.where(is_empty, 0.0, largest)
    log_total = tl.log(tl.where(is_empty, 1.0, total))
    if CLIPPED:
        for first in range(start, end, BLOCK_N):
            column = first + n
            k = columns_tile(k_base, column, k_row_stride, d, T, D)
            v = rows_tile(v_base, column, v_row_stride, e, end, E)
            s, _ = tile_scores(
                q, k, row[:, None], column[None, :], first_row, first, S, end, offset, left, right,
                scale, softcap, mask_base, mask_row_stride, mask_column_stride, MASK, LEFT, RIGHT,
                SOFTCAP, PRECISION,
            )  # fmt: skip
            p = softmax_tile(
                s, scale, largest[:, None], log_total[:, None], q.dtype == tl.float32, MASK, SOFTCAP
            )
            p = tl.minimum(tl.maximum((high - low) * p + low, 0.0), 1.0)
            sums = tl.dot(p.to(v.dtype), v, sums, input_precision=PRECISION)
    else:
        sums = sums / tl.where(is_empty, 1.0, total)[:, None]
    place = plane.to(tl.int64) * S + row
    out = out_ptr + place[:, None] * E + e[None, :]
    mask = (row < S)[:, None] & (e < E)[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=mask)
    # apart: their sum would have the last digits of the larger one
    tl.store(sums_ptr + 2 * place, largest, mask=row < S)
    tl.store(sums_ptr + 2 * place + 1, log_total, mask=row < S)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
    low: float,
    high: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns out [B, H, S, E]; of rows the maximum and the logarithm of the sum [B, H, S, 2]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores, shown = _reference_scores(
        q, k, mask, lengths, offsets, scale, softcap, offset, left, right
    )
    scores = scores.to(wide).masked_fill(~shown, -torch.inf)
    joined = scores
    if sinks is not None:
        column = sinks.to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        joined = torch.cat((scores, column), -1)
    if joined.shape[-1] == 0:
        out, sums = _allocate_attention(q, k, v)
        return out.zero_(), sums.zero_()
    largest = joined.amax(-1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    total = torch.exp(joined - largest).sum(-1, keepdim=True)
    log_total = torch.where(total == 0, 0, torch.log(total))
    weights = torch.exp(scores - largest - log_total)
    if (low, high) != (0.0, 1.0):
        weights = ((high - low) * weights + low).clamp(0, 1)
    values = known_rows(v, lengths).repeat_interleave(q.shape[1] // v.shape[1], 1)
    return weights.to(q.dtype) @ values, torch.cat((largest, log_total), -1)


def known_rows(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns x [B, G, T, E] with zeros from its lengths on, where a cache may hold anything."""
    if lengths is None:
        return x
    position = torch.arange(x.shape[2], device=x.device)[:, None]
    return x.masked_fill(position >= lengths.reshape(-1, 1, 1, 1), 0)


def _reference_scores(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor]:
    """Returns scores [B, H, S, T], and which are visible."""
    S, T = q.shape[2], k.shape[2]
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q * scale) @ keys.transpose(-1, -2)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    column = torch.arange(T, device=q.device)
    row = torch.arange(S, device=q.device)[:, None]
    row = row + (offset if offsets is None else offsets.reshape(-1, 1, 1, 1))
    shown = torch.ones_like(column <= row)
    if left >= 0:
        shown = shown & (column >= row - left)
    if right >= 0:
        shown = shown & (column <= row + right)
    if lengths is not None:
        shown = shown & (column < lengths.reshape(-1, 1, 1, 1))
    if mask is not None and mask.dtype == torch.bool:
        shown = shown & mask
    elif mask is not None:
        scores = scores + mask
        shown = shown & (mask != -torch.inf)
    return scores, shown.expand(scores.shape)


def _allocate_attention(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty((*q.shape[:3], 2), dtype=wide, device=q.device)


def adjacent(*tensors: Tensor) -> list[Tensor]:
    """Returns tensors whose elements of a row are adjacent; the same ones where they are."""
    return [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]


def mask_of(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor, str, tuple[int, ...]]:
    """Returns a mask that kernels read, its kind, and its strides over [B, H, S, T]."""
    if mask is None:
        return q, "none", (0, 0, 0, 0)
    wanted = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    read = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    strides = tuple(read.expand(wanted).stride())
    return read, "bool" if mask.dtype == torch.bool else "float", strides


def attention_options(
    kind: str, lengths: Tensor | None, offsets: Tensor | None, left: int, right: int,
    softcap: float, low: float, high: float, precision: str, size: int, value_size: int,
    config: Config,
) -> dict[str, object]:  # fmt: skip
    """Returns what a launch compiles kernels of attention for, besides tiles, by name."""
    return {
        "MASK": kind,
        "HAS_LENGTHS": lengths is not None,
        "HAS_OFFSETS": offsets is not None,
        "LEFT": left >= 0,
        "RIGHT": right >= 0,
        "SOFTCAP": softcap > 0,
        "CLIPPED": (low, high) != (0.0, 1.0),
        "PRECISION": precision,
        "BLOCK_D": block_of(size),
        "BLOCK_E": block_of(value_size),
        "num_warps": config["warps"],
        "num_stages": config["stages"],
    }


def _launch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    offset: int,
    left: int,
    right: int,
    low: float,
    high: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    out, sums = _allocate_attention(q, k, v)
    if out.numel() == 0:
        return out, sums
    q, k, v = adjacent(q, k, v)
    B, H, S, D = q.shape
    G, T, E = k.shape[1], k.shape[2], v.shape[3]
    read, kind, strides = mask_of(mask, q, k)
    # a tile of the mask takes registers, too
    if mask is None:
        config = config_for("attention", q, max(D, E))
    else:
        config = config_for("attention_masked", q, max(D, E))
    # two loops: with as many rows as in one, registers spill
    has_two_loops = (low, high) != (0.0, 1.0) and mask is None
    rows = max(16, config["m"] // 2) if has_two_loops else config["m"]
    wrap_triton(attention_kernel)[(triton.cdiv(S, rows) * B * H,)](
        q, k, v, read, q if lengths is None else lengths, q if offsets is None else offsets,
        q if sinks is None else sinks.contiguous(), out, sums,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides, H, H // G, S, T, D, E,
        offset, left, right, scale, softcap, low, high,
        HAS_SINKS=sinks is not None,
        BLOCK_M=rows,
        BLOCK_N=config["n"],
        **attention_options(
            kind, lengths, offsets, left, right, softcap, low, high, precision, D, E, config
        ),
    )  # fmt: skip
    return out, sums


attention_forward = operator(
    "attention",
    _launch_attention,
    allocate=_allocate_attention,
    reference=reference_attention,
    kernel=attention_kernel,
)
