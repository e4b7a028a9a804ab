"""Attention in standard operators: the body of `attention`, and its intermediate scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, bounds
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    fill,
    functions,
    linalg,
    logical,
    reduce,
    repeating,
    reshaping,
    slicing,
    softmax,
)
from regraft.ir.ops.content import at_least
from regraft.ir.types import DType


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The values that appear on the way, each [B, H, S, T] but the last.

    Attributes:
        raw: Scaled products of queries and keys.
        capped: After the soft cap.
        biased: After the masks; hidden keys have -inf.
        weights: After the softmax.
        out: The result, [B, H, S, E].
    """

    raw: Value
    capped: Value
    biased: Value
    weights: Value
    out: Value


def attention_body(node: Node, b: Builder) -> Value:
    """Returns the result of an `attention` node made of standard operators."""
    return expand_attention(node.inputs, node.attrs, b).out


def expand_attention(operands: Any, attrs: Mapping[str, Any], b: Builder) -> AttentionParts:
    """Builds attention from standard operators.

    Args:
        operands: q, k, v, mask, kv_lengths, sinks, causal_offset (None where absent).
        attrs: Attributes of `attention`.
        b: Where to build.

    Raises:
        AssertionError: When the shapes or the element type are unknown.
    """
    q, k, v, mask, lengths, sinks, offset = operands
    if q.shape is None or k.shape is None or v.shape is None or q.dtype is None:
        raise AssertionError("the body of attention needs shapes and an element type")
    dtype: DType = q.dtype
    B, H, S, _ = q.shape
    T, G = k.shape[2], attrs["kv_groups"]
    scaled = b.op(arithmetic.mul, q, b.constant(attrs["scale"], dtype))
    keys = b.op(reshaping.transpose, k, perm=(0, 1, 3, 2))
    raw = _grouped(b, scaled, keys, G, (B, H, S, T))
    additive = mask is not None and mask.dtype is not DType.BOOL
    early = additive and attrs["mask_before_softcap"]
    capped = b.op(arithmetic.add, raw, mask) if early else raw
    if attrs["softcap"] > 0:
        cap = b.constant(attrs["softcap"], dtype)
        ratio = b.op(functions.tanh, b.op(arithmetic.div, capped, cap))
        capped = b.op(arithmetic.mul, ratio, cap)
    hidden = b.constant(-np.inf, dtype)
    visible = visible_mask(b, attrs, (S, T), lengths, offset)
    biased = capped
    if early:
        # the cap made hidden scores finite
        biased = b.op(logical.where, b.op(logical.equal, mask, hidden), hidden, biased)
    elif additive:
        biased = b.op(arithmetic.add, biased, mask)
    elif mask is not None:
        visible = mask if visible is None else b.op(logical.logical_and, visible, mask)
    if visible is not None:
        biased = b.op(logical.where, visible, biased, hidden)
    logits, wide = biased, attrs["softmax_dtype"] or dtype
    if wide is not dtype:
        logits = b.op(cast.cast, logits, to=wide)
    empty_rows = mask is not None or may_hide_all(attrs, lengths, offset)
    weights = _softmax(b, logits, sinks, (B, H, S, T), empty_rows=empty_rows)
    if wide is not dtype:
        weights = b.op(cast.cast, weights, to=dtype)
    values = v if v.dtype is dtype else b.op(cast.cast, v, to=dtype)
    out = _grouped(b, weights, values, G, (B, H, S, v.shape[3]))
    return AttentionParts(raw, capped, biased, weights, out)


def _grouped(b: Builder, left: Value, right: Value, groups: int, out: tuple[DimLike, ...]) -> Value:
    """Multiplies [B, H, S, X] by [B, H / groups, X, Y]; a group's rows are one taller matrix."""
    if groups == 1:
        return b.op(linalg.matmul, left, right)
    if left.shape is None or right.shape is None:
        raise AssertionError("the body of attention needs shapes")
    B, _, S, X = left.shape
    tall = b.op(reshaping.reshape, left, shape=(B, right.shape[1], S * groups, X))
    return b.op(reshaping.reshape, b.op(linalg.matmul, tall, right), shape=out)


def may_hide_all(attrs: Mapping[str, Any], lengths: Value | None, offset: Value | None) -> bool:
    """Whether lengths or positions may leave a query without any key."""
    static: DimLike | None = attrs["causal_offset"]
    if lengths is not None or offset is not None:
        return True
    if static is None:
        return False
    lo = static if isinstance(static, int) else bounds(static)[0]
    return attrs["window"][0] >= 0 or lo is None or lo < 0


def binding_window(
    attrs: Mapping[str, Any], sizes: tuple[DimLike, DimLike], offset: Value | None
) -> tuple[int, int]:
    """Returns the window with -1 for a side that hides no key of [S, T]."""
    S, T = sizes
    static: DimLike | None = attrs["causal_offset"]
    left, right = attrs["window"]
    if static is None:
        return (left, right) if offset is not None else (-1, -1)
    # the first query sees up to static + right; one new position sees its whole cache
    if right >= 0 and at_least(static + right - T + 1, 0):
        right = -1
    if left >= 0 and at_least(left - (static + S - 1), 0):
        left = -1
    return left, right


def visible_mask(
    b: Builder,
    attrs: Mapping[str, Any],
    sizes: tuple[DimLike, DimLike],
    lengths: Value | None,
    offset: Value | None,
) -> Value | None:
    """Returns which keys positions and lengths leave visible, bool [S, T] or [B, 1, S, T]."""
    S, T = sizes
    left, right = binding_window(attrs, sizes, offset)
    is_windowed = (left, right) != (-1, -1)
    if lengths is None and not is_windowed:
        return None
    keys = b.op(fill.range_, start=0, limit=T, delta=1, dtype=DType.I64)
    conditions: list[Value] = []
    if is_windowed:
        start: DimLike = 0 if attrs["causal_offset"] is None else attrs["causal_offset"]
        rows = b.op(fill.range_, start=start, limit=start + S, delta=1, dtype=DType.I64)
        rows = b.op(reshaping.unsqueeze, rows, axes=(1,))
        if offset is not None:
            rows = b.op(arithmetic.add, rows, _per_batch(b, offset))
        if right >= 0:
            conditions.append(b.op(logical.less_or_equal, keys, _shifted(b, rows, right)))
        if left >= 0:
            conditions.append(b.op(logical.greater_or_equal, keys, _shifted(b, rows, -left)))
    if lengths is not None:
        conditions.append(b.op(logical.less, keys, _per_batch(b, lengths)))
    visible = conditions[0]
    for condition in conditions[1:]:
        visible = b.op(logical.logical_and, visible, condition)
    return visible


def _per_batch(b: Builder, value: Value) -> Value:
    """Lines a vector per batch up with [B, H, S, T]; a scalar broadcasts as it is."""
    return value if value.rank == 0 else b.op(reshaping.unsqueeze, value, axes=(1, 2, 3))


def _shifted(b: Builder, rows: Value, by: int) -> Value:
    return rows if by == 0 else b.op(arithmetic.add, rows, b.constant(by, DType.I64))


def _softmax(
    b: Builder,
    logits: Value,
    sinks: Value | None,
    shape: tuple[DimLike, ...],
    *,
    empty_rows: bool,
) -> Value:
    dtype = logits.dtype
    B, H, S, T = shape
    if sinks is not None:
        # one more column takes weight and is cut off again; no row is ever empty
        column = b.op(reshaping.unsqueeze, sinks, axes=(0, 2, 3))
        if sinks.dtype is not dtype:
            column = b.op(cast.cast, column, to=dtype)
        column = b.op(repeating.expand, column, shape=(B, H, S, 1))
        wide = b.op(softmax.softmax, b.op(slicing.concat, logits, column, axis=3), axis=-1)
        return b.op(slicing.slice_, wide, starts=(0,), ends=(T,), axes=(3,), steps=(1,))
    weights = b.op(softmax.softmax, logits, axis=-1)
    if not empty_rows:
        return weights
    # softmax of a row of -inf is NaN
    top = b.op(reduce.reduce_max, logits, axes=(3,), keepdims=True)
    empty = b.op(logical.equal, top, b.constant(-np.inf, dtype))
    return b.op(logical.where, empty, b.constant(0, dtype), weights)
