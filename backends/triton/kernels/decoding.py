"""Attention of one query per sequence, its keys shared out among programs.

Each program takes a span of keys for all heads of queries that share them, and writes its sum
of values with its maximum and sum of exponentials; a second kernel merges the spans. Source: Dao et
al. 2023 (Flash-Decoding). With a unified maximum phi no span looks for its own: exp(score - phi) is
added as it comes, and the largest difference is looked at once, at the end. A span in which it
leaves [least, most] is computed again with its own maximum, so the result never depends on how well
phi was calibrated. Source: Hong et al. 2023 (FlashDecoding++), sections 3 and 4. A mask hides keys
or adds to their scores as it does for `attention`: what a padded batch is decoded with.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attending import mask_gradient
from regraft.backends.triton.kernels.attention import (
    adjacent,
    attention_forward,
    mask_of,
    reference_attention,
)
from regraft.backends.triton.kernels.attention_backward import attention_backward
from regraft.backends.triton.kernels.attention_tiles import exact_tanh, positive_scale
from regraft.backends.triton.kernels.configs import config_for, num_processors
from regraft.backends.triton.kernels.operands import check_attention, check_counts, in_autocast
from regraft.backends.triton.kernels.operators import block_of, operator, wrap_triton


@triton.jit
def span_of_keys(
    q, k_base, v_base, mask_base, k_row_stride, v_row_stride, mask_column_stride, member, group,
    first, last, least_key, D, E, scale, softcap, phi,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UNIFIED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Returns maxima, sums of exponentials and of values of a span, and its largest score."""
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    largest = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    values = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    reached = tl.full([BLOCK_G, BLOCK_N], float("-inf"), tl.float32)
    added = tl.zeros([BLOCK_G, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_N):
        column = start + n
        k = tl.load(
            k_base + column[None, :].to(tl.int64) * k_row_stride + d[:, None],
            mask=(column < last)[None, :] & (d < D)[:, None], other=0.0,
        )  # fmt: skip
        v = tl.load(
            v_base + column[:, None].to(tl.int64) * v_row_stride + e[None, :],
            mask=(column < last)[:, None] & (e < E)[None, :], other=0.0,
        )  # fmt: skip
        s = tl.dot(q, k, input_precision=PRECISION) * scale
        if SOFTCAP:
            s = exact_tanh(s / softcap) * softcap
        shown = ((column < last) & (column >= least_key))[None, :] & (member < group)[:, None]
        if MASK != "none":
            place = mask_base[:, None] + column[None, :].to(tl.int64) * mask_column_stride
            m = tl.load(place, mask=shown, other=0)
            if MASK == "bool":
                shown = shown & (m != 0)
            else:
                s += m.to(tl.float32)
        s = tl.where(shown, s, float("-inf"))
        if UNIFIED:
            reached = tl.maximum(reached, s)
            p = tl.exp(s - phi)
            added += p
        else:
            found = tl.maximum(largest, tl.max(s, axis=1))
            base = tl.where(found == float("-inf"), 0.0, found)
            shrink = tl.exp(largest - base)
            p = tl.exp(s - base[:, None])
            total = total * shrink + tl.sum(p, axis=1)
            values = values * shrink[:, None]
            largest = found
        values = tl.dot(p.to(v.dtype), v, values, input_precision=PRECISION)
    if UNIFIED:
        total = tl.sum(added, axis=1)
        largest = tl.max(reached, axis=1)
    return largest, total, values


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, positions_ptr, values_ptr, sums_ptr,
    q_batch_stride, q_head_stride,
    k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride,
    mask_batch_stride, mask_head_stride, mask_column_stride,
    key_heads, group, T, D, E, span, left, scale, softcap, phi, least, most,
    MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    LEFT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UNIFIED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Writes the share of one span of keys for the `group` heads that read them."""
    # f64 where PyTorch's compiler launches
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    phi = tl.cast(phi, tl.float32)
    least = tl.cast(least, tl.float32)
    most = tl.cast(most, tl.float32)
    split = tl.program_id(1)
    # on the first axis of the grid: others end at 65,535
    batch = (tl.program_id(0) // key_heads).to(tl.int64)
    key_head = (tl.program_id(0) % key_heads).to(tl.int64)
    member = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    length = T
    if HAS_LENGTHS:
        length = min(T, tl.load(lengths_ptr + batch).to(tl.int32))
    first = split * span
    last = min(length, first + span)
    least_key = 0
    if LEFT:
        position = length - 1
        if HAS_POSITIONS:
            position = tl.load(positions_ptr + batch).to(tl.int32)
        least_key = max(0, position - left)
        first = max(first, least_key // BLOCK_N * BLOCK_N)
    head = key_head * group + member
    q = tl.load(
        q_ptr + batch * q_batch_stride + head[:, None] * q_head_stride + d[None, :],
        mask=(member < group)[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    k_base = k_ptr + batch * k_batch_stride + key_head * k_head_stride
    v_base = v_ptr + batch * v_batch_stride + key_head * v_head_stride
    # the mask of one query: a row for each head
    mask_base = mask_ptr + batch * mask_batch_stride + head * mask_head_stride
    largest, total, values = span_of_keys(
        q, k_base, v_base, mask_base, k_row_stride, v_row_stride, mask_column_stride, member,
        group, first, last, least_key, D, E, scale, softcap, phi, MASK, SOFTCAP, UNIFIED,
        PRECISION, BLOCK_G, BLOCK_N, BLOCK_D, BLOCK_E,
    )  # fmt: skip
    if UNIFIED:
        difference = largest - phi
        is_outside = (difference > most) | ((difference < least) & (largest != float("-inf")))
        largest = tl.where(largest == float("-inf"), largest, phi)
        if tl.max(is_outside.to(tl.int32), axis=0) > 0:
            largest, total, values = span_of_keys(
                q, k_base, v_base, mask_base, k_row_stride, v_row_stride, mask_column_stride,
                member, group, first, last, least_key, D, E, scale, softcap, phi, MASK, SOFTCAP,
                False, PRECISION, BLOCK_G, BLOCK_N, BLOCK_D, BLOCK_E,
            )  # fmt: skip
    # [split, batch, head]
    place = (split.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * group + member
    tl.store(sums_ptr + 2 * place, largest, mask=member < group)
    tl.store(sums_ptr + 2 * place + 1, total, mask=member < group)
    out_mask = (member < group)[:, None] & (e < E)[None, :]
    tl.store(values_ptr + place[:, None] * E + e[None, :], values, mask=out_mask)


@triton.jit
def decode_merge_kernel(
    values_ptr, sums_ptr, sinks_ptr, out_ptr, H, E, splits,
    HAS_SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Merges the spans of one head: each counts by the exponential of its maximum."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    split = tl.arange(0, SPLITS)
    e = tl.arange(0, BLOCK_E)
    place = split.to(tl.int64) * rows + row
    largest = tl.load(sums_ptr + 2 * place, mask=split < splits, other=float("-inf"))
    total = tl.load(sums_ptr + 2 * place + 1, mask=split < splits, other=0.0)
    top = tl.max(largest, axis=0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + row % H).to(tl.float32)
        top = tl.maximum(top, sink)
    base = tl.where(top == float("-inf"), 0.0, top)
    share = tl.exp(largest - base)
    values = tl.load(
        values_ptr + place[:, None] * E + e[None, :],
        mask=(split < splits)[:, None] & (e < E)[None, :], other=0.0,
    )  # fmt: skip
    denominator = tl.sum(share * total, axis=0)
    if HAS_SINKS:
        denominator += tl.exp(sink - base)
    out = tl.sum(share[:, None] * values, axis=0) / tl.where(denominator == 0.0, 1.0, denominator)
    tl.store(out_ptr + row * E + e, out.to(out_ptr.dtype.element_ty), mask=e < E)


def _offsets_of(lengths: Tensor | None, positions: Tensor | None) -> Tensor | None:
    """Returns where queries stand; None: at the last of all keys."""
    return positions if positions is not None or lengths is None else lengths - 1


def reference_decode(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    positions: Tensor | None, sinks: Tensor | None, scale: float, softcap: float, left: int,
    phi: float, least: float, most: float, precision: str,
) -> Tensor:  # fmt: skip
    """Returns attention of q [B, H, D] as [B, H, E]; a unified maximum changes nothing."""
    out = reference_attention(
        q.unsqueeze(2), k, v, mask, lengths, _offsets_of(lengths, positions), sinks, scale,
        softcap, k.shape[2] - 1, left, -1, 0.0, 1.0, precision,
    )[0]  # fmt: skip
    return out.squeeze(2)


def _allocate_decode(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    positions: Tensor | None, sinks: Tensor | None, scale: float, softcap: float, left: int,
    phi: float, least: float, most: float, precision: str,
) -> Tensor:  # fmt: skip
    return torch.empty((*q.shape[:2], v.shape[3]), dtype=q.dtype, device=q.device)


def _launch_decode(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None,
    positions: Tensor | None, sinks: Tensor | None, scale: float, softcap: float, left: int,
    phi: float, least: float, most: float, precision: str,
) -> Tensor:  # fmt: skip
    out = torch.empty((*q.shape[:2], v.shape[3]), dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    q, k, v = adjacent(q, k, v)
    B, H, D = q.shape
    G, T, E = k.shape[1], k.shape[2], v.shape[3]
    # the addresses of a mask take registers
    if mask is None:
        config = config_for("decode", q, max(D, E))
    else:
        config = config_for("decode_masked", q, max(D, E))
    tiles = max(1, triton.cdiv(T, config["n"]))
    # as many as run at once: a few programs more would run alone, after all others
    wanted = num_processors(q.device) * config["per_processor"] // (B * G)
    span = triton.cdiv(tiles, max(1, min(tiles, wanted, config["max_splits"]))) * config["n"]
    splits = max(1, triton.cdiv(T, span))
    values = torch.empty((splits, B, H, E), dtype=torch.float32, device=q.device)
    sums = torch.empty((splits, B, H, 2), dtype=torch.float32, device=q.device)
    read, kind, strides = mask_of(mask, q.unsqueeze(2), k)
    # two loops over heads above 128 in full f32 leave no registers; their own maximum is exact
    is_unified = least < most and not (q.dtype == torch.float32 and max(D, E) > 128)
    wrap_triton(decode_kernel)[(B * G, splits)](
        q, k, v, read,
        q if lengths is None else lengths,
        q if positions is None else positions,
        values, sums,
        q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3],
        strides[0], strides[1], strides[3],
        G, H // G, T, D, E, span, left, scale, softcap, phi, least, most,
        MASK=kind,
        HAS_LENGTHS=lengths is not None,
        HAS_POSITIONS=positions is not None,
        LEFT=left >= 0,
        SOFTCAP=softcap > 0,
        UNIFIED=is_unified,
        PRECISION=precision,
        BLOCK_G=block_of(H // G),
        BLOCK_N=config["n"],
        BLOCK_D=block_of(D),
        BLOCK_E=block_of(E),
        num_warps=config["warps"],
        num_stages=config["stages"],
    )  # fmt: skip
    wrap_triton(decode_merge_kernel)[(B * H,)](
        values, sums, q if sinks is None else sinks.contiguous(), out, H, E, splits,
        HAS_SINKS=sinks is not None,
        SPLITS=block_of(splits),
        BLOCK_E=block_of(E),
        num_warps=4,
    )  # fmt: skip
    return out


decode = operator(
    "attention_decode",
    _launch_decode,
    allocate=_allocate_decode,
    reference=reference_decode,
    kernel=decode_kernel,
)


def _keep_decode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, mask, lengths, positions, sinks, scale, softcap, left, _, _, _, precision = inputs
    ctx.save_for_backward(q, k, v, mask, lengths, positions, sinks)
    ctx.settings = (scale, softcap, k.shape[2] - 1, left, -1, 0.0, 1.0, precision)


def _differentiate_decode(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradients of attention, which is computed again: its sums were not kept."""
    q, k, v, mask, lengths, positions, sinks = ctx.saved_tensors
    whole, dwhole = q.unsqueeze(2), dout.unsqueeze(2)
    offsets = _offsets_of(lengths, positions)
    out, sums = attention_forward(whole, k, v, mask, lengths, offsets, sinks, *ctx.settings)
    wants_mask = mask is not None and ctx.needs_input_grad[3]
    dq, dk, dv, delta, ds = attention_backward(
        dwhole, whole, k, v, mask, lengths, offsets, out, sums, *ctx.settings, wants_mask
    )
    dmask = mask_gradient(ds, mask) if wants_mask else None
    dsinks = None
    if sinks is not None and ctx.needs_input_grad[6]:
        share = torch.exp(sinks.to(sums.dtype).reshape(1, -1, 1) - sums[..., 0] - sums[..., 1])
        dsinks = -(share * delta).sum((0, 2)).to(sinks.dtype)
    return dq.squeeze(2), dk, dv, dmask, None, None, dsinks, *(None,) * 7


decode.register_autograd(_differentiate_decode, setup_context=_keep_decode)


def attention_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    window: int = -1,
    softcap: float = 0.0,
    unified: tuple[float, float, float] | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Returns attention of one query per sequence, q [B, H, D], to a cache, as [B, H, E].

    Args:
        q: The queries.
        k: Keys [B, G, T, D]; G divides H.
        v: Values [B, G, T, E].
        mask: bool (False hides) or float (added), broadcast to [B, H, 1, T].
        lengths: Number of keys per sequence, [B]; default: T.
        positions: Key position of each query, [B]; default: the last key's.
        sinks: [H], a further score per head that takes weight but has no value.
        scale: Factor of the scores; default: D ** -0.5.
        window: How many keys back of its position a query sees; -1: all.
        softcap: Scores become softcap * tanh(score / softcap).
        unified: (phi, least, most): exp(score - phi) is added without looking for a maximum where
            the largest score minus phi is in [least, most]; other spans are computed again.
        precision: As that of `attention`.

    Raises:
        TypeError: Dtypes differ.
        ValueError: Sizes differ; the range of a unified maximum is empty, or too wide for
            exponentials in f16.
    """
    q, k, v = in_autocast(q, k, v)
    check_attention(
        "attention_decode", q.unsqueeze(2), k, v, mask, lengths, sinks, (window, -1), softcap,
        precision,
    )  # fmt: skip
    check_counts("attention_decode", "positions", positions, q.shape[:1], q)
    phi, least, most = unified if unified is not None else (0.0, 0.0, 0.0)
    # e^11 is the largest power that f16 holds; below e^-8 products of f16 lose digits
    widest = (-8.0, 11.0) if q.dtype == torch.float16 else (-60.0, 60.0)
    if unified is not None and not widest[0] <= least < most <= widest[1]:
        raise ValueError(
            f"attention_decode: the range [{least}, {most}] of a unified maximum is empty or "
            f"leaves {list(widest)}, which is what {q.dtype} holds"
        )
    q, factor = positive_scale(q, q.shape[2] ** -0.5 if scale is None else scale)
    lengths, positions = (
        None if each is None else each.contiguous() for each in (lengths, positions)
    )
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    out: Tensor = decode(
        q, k, v, mask, lengths, positions if window >= 0 else None, sinks, factor, softcap, window,
        phi, least, most, precision,
    )  # fmt: skip
    return out
