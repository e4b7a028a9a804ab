"""Importers of Attention, RotaryEmbedding and LinearAttention into [batch, heads, length, size]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike, exactdiv
from regraft.ir.graph import Value
from regraft.ir.ops import (
    arithmetic,
    attention,
    attention_body,
    fill,
    linear_attention,
    repeating,
    reshaping,
    rotary,
    sizes,
    slicing,
)
from regraft.ir.types import DType


def split_heads(b: Builder, x: Value, heads: DimLike) -> Value:
    """Returns [B, S, heads * D] as [B, heads, S, D]."""
    if x.shape is None:
        raise AssertionError("splitting heads needs a shape")
    B, S, width = x.shape
    split = b.op(reshaping.reshape, x, shape=(B, S, heads, exactdiv(width, heads)))
    return b.op(reshaping.transpose, split, perm=(0, 2, 1, 3))


def merge_heads(b: Builder, x: Value) -> Value:
    """Returns [B, H, S, D] as [B, S, H * D]."""
    if x.shape is None:
        raise AssertionError("merging heads needs a shape")
    B, H, S, D = x.shape
    return b.op(
        reshaping.reshape, b.op(reshaping.transpose, x, perm=(0, 2, 1, 3)), shape=(B, S, H * D)
    )


def _attention(item: NodeImport) -> Sequence[Value | None]:
    q, k, v = (item.require(i) for i in range(3))
    mask, past_k, past_v, lengths = (item.input(i) for i in range(3, 7))
    is_flat = q.rank == 3
    heads, kv_heads = item.attr("q_num_heads"), item.attr("kv_num_heads")
    if (past_k is None) != (past_v is None):
        raise item.error("past_key and past_value are given together or not at all")
    if is_flat and (heads is None or kv_heads is None):
        raise item.error("rank 3 operands need q_num_heads and kv_num_heads")
    layout = _layout(q, k, heads, kv_heads)
    scale = item.attr("scale")
    if layout is None or v.rank != q.rank or q.dtype is None:
        return item.opaque()  # heads and groups are known at run time only
    groups, size = layout
    if scale is None:
        if not isinstance(size, int):
            return item.opaque()
        scale = size**-0.5
    b = item.b
    if is_flat:
        q, k, v = (split_heads(b, x, n) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    if past_k is not None and past_v is not None:
        k = b.op(slicing.concat, past_k, k, axis=2)
        v = b.op(slicing.concat, past_v, v, axis=2)
    attrs = {
        "scale": scale,
        "kv_groups": groups,
        "softcap": max(item.attr("softcap", 0.0), 0.0),
        "softmax_dtype": _softmax_dtype(item, q.dtype),
        **_window(item),
    }
    offset: Value | None = None
    if "window" in attrs:
        offset, attrs["causal_offset"] = _offset(b, q, past_k, lengths)
    mask = None if mask is None else _padded_mask(item, mask, k)
    operands = (q, k, v, mask, lengths, None, offset)
    scores = None
    if item.has_output(3):
        full = {**attention.attention.defaults, **attrs}
        parts = attention_body.expand_attention(operands, full, b)
        modes = (parts.raw, parts.capped, parts.biased, parts.weights)
        out, scores = parts.out, modes[item.attr("qk_matmul_output_mode", 0)]
    else:
        out = b.op(attention.attention, *operands, **attrs)
    return merge_heads(b, out) if is_flat else out, k, v, scores


def _layout(q: Value, k: Value, heads: Any, kv_heads: Any) -> tuple[int, DimLike] | None:
    """Returns (query heads per key head, head size), None when only run time knows the former."""
    if q.shape is None or k.shape is None or len(q.shape) != len(k.shape):
        return None
    if len(q.shape) == 3:
        size = exactdiv(q.shape[2], heads)
    else:
        heads, kv_heads, size = q.shape[1], k.shape[1], q.shape[3]
    groups = exactdiv(heads, kv_heads)
    return (groups, size) if isinstance(groups, int) and groups * kv_heads == heads else None


def _softmax_dtype(item: NodeImport, own: DType | None) -> DType | None:
    code = item.attr("softmax_precision")
    dtype = None if code is None else DTYPES[code]
    return None if dtype is own else dtype


def _window(item: NodeImport) -> dict[str, Any]:
    """Returns the attribute `window` unless every key is visible."""
    left, right = item.attr("left_window_size", -1), item.attr("right_window_size", -1)
    if item.attr("is_causal", 0):
        right = 0
    return {} if (left, right) == (-1, -1) else {"window": (left, right)}


def _offset(
    b: Builder, q: Value, past: Value | None, lengths: Value | None
) -> tuple[Value | None, DimLike | None]:
    """Returns where the first query stands among the keys: (operand, None) or (None, size)."""
    if q.shape is None:
        raise AssertionError("attention needs a shape")
    if past is None and lengths is not None:
        # an external cache: the queries are the last valid positions of each sequence
        S = q.shape[2]
        if isinstance(S, Dim):
            length = b.op(sizes.shape, q, start=2, end=3)
        else:
            length = b.constant(np.array([S], np.int64))
        return b.op(arithmetic.sub, lengths, length), None
    return None, 0 if past is None or past.shape is None else past.shape[2]


def _padded_mask(item: NodeImport, mask: Value, k: Value) -> Value:
    """Extends a mask that is shorter than the keys: what it leaves out is hidden."""
    if mask.shape is None or k.shape is None or not mask.shape or mask.dtype is None:
        return mask
    missing = k.shape[2] - mask.shape[-1]
    if missing == 0:
        return mask
    fill = False if mask.dtype is DType.BOOL else -np.inf
    rank = len(mask.shape)
    return item.b.op(
        repeating.pad, mask, None, item.b.constant(fill, mask.dtype),
        pads=(*[0] * (2 * rank - 1), missing),
    )  # fmt: skip


def _rotary(item: NodeImport) -> Value | Sequence[Value]:
    x, cos, sin, positions = item.require(0), item.require(1), item.require(2), item.input(3)
    heads, size = item.attr("num_heads", 0), item.attr("rotary_embedding_dim", 0)
    if x.rank not in (3, 4) or (x.rank == 3 and not heads):
        return item.opaque()  # the layout depends on the rank
    b = item.b
    turned = b.op(
        rotary.rotary_embedding,
        split_heads(b, x, heads) if x.rank == 3 else x,
        cos,
        sin,
        positions,
        interleaved=bool(item.attr("interleaved", 0)),
        rotary_size=size or None,
    )
    return merge_heads(b, turned) if x.rank == 3 else turned


def _contrib_rotary(item: NodeImport) -> Value | Sequence[Value]:
    """ONNX Runtime's own operator: positions come second, and may be one offset for all."""
    x, positions, cos, sin = (item.require(i) for i in range(4))
    heads, size = item.attr("num_heads", 0), item.attr("rotary_embedding_dim", 0)
    half = cos.shape[-1] if cos.shape is not None else None
    if x.shape is not None and len(x.shape) == 3 and not heads and isinstance(half, int):
        heads = exactdiv(x.shape[2], 2 * half)  # every channel turns
    if (
        x.shape is None
        or len(x.shape) not in (3, 4)
        or (len(x.shape) == 3 and not heads)
        or positions.rank not in (1, 2)
        or item.attr("is_packed_batching", 0)
        or item.attr("scale", 1.0) != 1.0  # not every provider applies it
    ):
        return item.opaque()
    b, is_flat = item.b, len(x.shape) == 3
    if is_flat:
        x = split_heads(b, x, heads)
    if positions.rank == 1:
        B, _, S, _ = x.shape or ()
        steps = b.op(fill.range_, start=0, limit=S, delta=1, dtype=DType.I64)
        positions = b.op(repeating.expand, b.op(arithmetic.add, steps, positions), shape=(B, S))
    turned = b.op(
        rotary.rotary_embedding, x, cos, sin, positions,
        interleaved=bool(item.attr("interleaved", 0)), rotary_size=size or None,
    )  # fmt: skip
    return merge_heads(b, turned) if is_flat else turned


def _linear_attention(item: NodeImport) -> Sequence[Value | None]:
    q, k, v, state, decay, beta = (item.input(i) for i in range(6))
    heads, kv_heads = item.attr("q_num_heads"), item.attr("kv_num_heads")
    if q is None or k is None or v is None or not heads or not kv_heads or heads % kv_heads:
        raise item.error("needs query, key, value and q_num_heads, a multiple of kv_num_heads")
    if any(x is not None and x.shape is None for x in (q, k, v, decay, beta)):
        return item.opaque()  # heads cannot be split without a shape
    b, scale = item.b, item.attr("scale", 0.0)
    if not scale:
        size = exactdiv((q.shape or ())[2], heads)
        if not isinstance(size, int):
            return item.opaque()
        scale = size**-0.5
    q, k, v = (split_heads(b, x, n) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    if decay is not None:
        decay = split_heads(b, decay, kv_heads)
    if beta is not None:
        beta = split_heads(b, beta, (beta.shape or ())[2])  # per head, or one for all
    out, new_state = b.multi(
        linear_attention.linear_attention, q, k, v, state, decay, beta,
        rule=item.attr("update_rule", "gated_delta"),
        scale=scale,
        kv_groups=heads // kv_heads,
    )  # fmt: skip
    return merge_heads(b, out), new_state


def _contrib_linear_attention(item: NodeImport) -> Sequence[Value | None]:
    """Imports com.microsoft LinearAttention; what it has beyond the standard stays opaque."""
    heads, kv_heads = item.attr("q_num_heads"), item.attr("kv_num_heads")
    if item.attr("state_window", 0) or not heads or not kv_heads or heads % kv_heads:
        return item.opaque()
    return _linear_attention(item)


IMPORTS: tuple[Import, ...] = (
    Import("Attention", {23: _attention}),
    Import("RotaryEmbedding", {23: _rotary}),
    Import("RotaryEmbedding", {1: _contrib_rotary}, "com.microsoft"),
    Import("LinearAttention", {27: _linear_attention}),
    Import("LinearAttention", {1: _contrib_linear_attention}, "com.microsoft"),
)
