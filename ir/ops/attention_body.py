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
from regraft.ir.ops.attention_scores import lowest, scored
from regraft.ir.ops.attention_weights import hidden_at, is_softmax
from regraft.ir.ops.attention_weights_body import modify, normalize
from regraft.ir.ops.content import at_least
from regraft.ir.ops.finite import may_be_infinite
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
    """Returns the result of an `attention` node made of standard operators.

    Masks are added numbers, the cheapest form: a small tensor that all layers share.
    """
    attrs, (_, _, v, mask, lengths, sinks, offset, _, _) = node.attrs, node.inputs
    if v is None:
        raise AssertionError("attention without values")
    scores = _Scores.of(node.inputs, attrs, b)
    capped = _capped(scores, mask, attrs, b)
    visible = visible_mask(b, attrs, (scores.S, scores.T), lengths, offset)
    if not is_softmax(attrs):
        return _weighted(b, _weights(node, scores, capped, visible, b), v, scores, attrs)
    may_empty = may_hide_all(attrs, lengths, offset)
    if mask is not None and mask.dtype is DType.BOOL:
        may_empty = True
        visible = mask if visible is None else b.op(logical.logical_and, visible, mask)
        mask = None
    hidden = b.constant(-np.inf, scores.dtype)
    if mask is not None:
        may_hide = may_be_infinite(mask)
        added = mask if visible is None else b.op(logical.where, visible, mask, hidden)
        if attrs["mask_before_softcap"]:
            is_shown = may_hide or visible is not None
            biased = (
                b.op(logical.where, b.op(logical.equal, added, hidden), hidden, capped)
                if is_shown
                else capped
            )
        else:
            biased = b.op(arithmetic.add, capped, added)
        weights = _softmax(b, biased, sinks, scores, attrs)
        if (may_hide or may_empty) and sinks is None:
            # softmax of a row of -inf is NaN
            empty = b.op(logical.equal, added, hidden)
            weights = b.op(logical.where, empty, b.constant(0, scores.dtype), weights)
    elif visible is not None:
        # the lowest number instead of -inf: the softmax of a row without a key is no NaN
        low = b.constant(lowest(scores.dtype), scores.dtype) if may_empty else hidden
        added = b.op(logical.where, visible, b.constant(0, scores.dtype), low)
        weights = _softmax(b, b.op(arithmetic.add, capped, added), sinks, scores, attrs)
        if may_empty and sinks is None:
            shown = b.op(cast.cast, visible, to=scores.dtype)
            weights = b.op(arithmetic.mul, weights, shown)
    else:
        weights = _softmax(b, capped, sinks, scores, attrs)
    return _weighted(b, weights, v, scores, attrs)


def _weights(
    node: Node, scores: _Scores, capped: Value, visible: Value | None, b: Builder
) -> Value:
    """Returns the weights of a modifier or normalizer that is not a plain softmax."""
    attrs, (_, _, _, mask, _, sinks, offset, alpha, gates) = node.attrs, node.inputs
    if mask is not None and mask.dtype is DType.BOOL:
        visible = mask if visible is None else b.op(logical.logical_and, visible, mask)
        mask = None
    elif mask is not None and not attrs["mask_before_softcap"]:
        capped = b.op(arithmetic.add, capped, mask)
    wide = attrs["softmax_dtype"] or scores.dtype
    x = capped if wide is scores.dtype else b.op(cast.cast, capped, to=wide)
    sizes = (scores.B, scores.H, scores.S, scores.T)
    found = scored(b, x, mask, visible, sizes, hidden_at(attrs))
    positions = None
    if attrs["modifier"] == "selective":
        positions = query_positions(b, attrs, scores.S, offset)
    weights = normalize(modify(found, attrs, gates, positions), attrs, sinks, alpha)
    return weights if wide is scores.dtype else b.op(cast.cast, weights, to=scores.dtype)


def expand_attention(operands: Any, attrs: Mapping[str, Any], b: Builder) -> AttentionParts:
    """Builds attention from standard operators, every intermediate value as ONNX defines it.

    Args:
        operands: q, k, v, mask, kv_lengths, sinks, causal_offset (None where absent).
        attrs: Attributes of `attention`.
        b: Where to build.

    Raises:
        AssertionError: When the shapes or the element type are unknown.
    """
    _, _, v, mask, lengths, sinks, offset = operands
    scores = _Scores.of(operands, attrs, b)
    capped = biased = _capped(scores, mask, attrs, b)
    hidden = b.constant(-np.inf, scores.dtype)
    visible = visible_mask(b, attrs, (scores.S, scores.T), lengths, offset)
    if mask is not None and mask.dtype is DType.BOOL:
        visible = mask if visible is None else b.op(logical.logical_and, visible, mask)
    elif mask is not None and attrs["mask_before_softcap"]:
        # the cap made hidden scores finite
        biased = b.op(logical.where, b.op(logical.equal, mask, hidden), hidden, biased)
    elif mask is not None:
        biased = b.op(arithmetic.add, biased, mask)
    if visible is not None:
        biased = b.op(logical.where, visible, biased, hidden)
    weights = _softmax(b, biased, sinks, scores, attrs)
    if sinks is None and (mask is not None or may_hide_all(attrs, lengths, offset)):
        # softmax of a row of -inf is NaN
        top = b.op(reduce.reduce_max, biased, axes=(3,), keepdims=True)
        empty = b.op(logical.equal, top, hidden)
        weights = b.op(logical.where, empty, b.constant(0, scores.dtype), weights)
    out = _weighted(b, weights, v, scores, attrs)
    return AttentionParts(scores.raw, capped, biased, weights, out)


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scaled products of queries and keys, and the sizes that the rest needs."""

    raw: Value
    dtype: DType
    B: DimLike
    H: DimLike
    S: DimLike
    T: DimLike

    @staticmethod
    def of(operands: Any, attrs: Mapping[str, Any], b: Builder) -> _Scores:
        """Builds the products; the scale goes to the queries, the smaller operand."""
        q, k, v = operands[:3]
        if q.shape is None or k.shape is None or v.shape is None or q.dtype is None:
            raise AssertionError("the body of attention needs shapes and an element type")
        B, H, S, _ = q.shape
        T, scale = k.shape[2], attrs["scale"]
        if scale != 1.0:
            q = b.op(arithmetic.mul, q, b.constant(scale, q.dtype))
        keys = b.op(reshaping.transpose, k, perm=(0, 1, 3, 2))
        raw = _grouped(b, q, keys, attrs["kv_groups"], (B, H, S, T))
        return _Scores(raw, q.dtype, B, H, S, T)


def _capped(scores: _Scores, mask: Value | None, attrs: Mapping[str, Any], b: Builder) -> Value:
    """Applies the soft cap, after a mask that is added before it."""
    x = scores.raw
    if mask is not None and mask.dtype is not DType.BOOL and attrs["mask_before_softcap"]:
        x = b.op(arithmetic.add, x, mask)
    if attrs["softcap"] > 0:
        cap = b.constant(attrs["softcap"], scores.dtype)
        x = b.op(arithmetic.mul, b.op(functions.tanh, b.op(arithmetic.div, x, cap)), cap)
    return x


def _weighted(
    b: Builder, weights: Value, v: Value, scores: _Scores, attrs: Mapping[str, Any]
) -> Value:
    if v.shape is None:
        raise AssertionError("the body of attention needs shapes")
    values = v if v.dtype is scores.dtype else b.op(cast.cast, v, to=scores.dtype)
    shape = (scores.B, scores.H, scores.S, v.shape[3])
    return _grouped(b, weights, values, attrs["kv_groups"], shape)


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
        rows = query_positions(b, attrs, S, offset)
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


def query_positions(
    b: Builder, attrs: Mapping[str, Any], S: DimLike, offset: Value | None
) -> Value:
    """Returns the key position of every query, i64 [S, 1] or [B, 1, S, 1]."""
    start: DimLike = 0 if attrs["causal_offset"] is None else attrs["causal_offset"]
    rows = b.op(fill.range_, start=start, limit=start + S, delta=1, dtype=DType.I64)
    rows = b.op(reshaping.unsqueeze, rows, axes=(1,))
    return rows if offset is None else b.op(arithmetic.add, rows, _per_batch(b, offset))


def _per_batch(b: Builder, value: Value) -> Value:
    """Lines a vector per batch up with [B, H, S, T]; a scalar broadcasts as it is."""
    return value if value.rank == 0 else b.op(reshaping.unsqueeze, value, axes=(1, 2, 3))


def _shifted(b: Builder, rows: Value, by: int) -> Value:
    return rows if by == 0 else b.op(arithmetic.add, rows, b.constant(by, DType.I64))


def _softmax(
    b: Builder, logits: Value, sinks: Value | None, scores: _Scores, attrs: Mapping[str, Any]
) -> Value:
    wide = attrs["softmax_dtype"] or scores.dtype
    if wide is not scores.dtype:
        logits = b.op(cast.cast, logits, to=wide)
    if sinks is None:
        weights = b.op(softmax.softmax, logits, axis=-1)
    else:
        # one more column takes weight and is cut off again; no row is ever empty
        column = b.op(reshaping.reshape, sinks, shape=(1, scores.H, 1, 1))
        if sinks.dtype is not wide:
            column = b.op(cast.cast, column, to=wide)
        column = b.op(repeating.expand, column, shape=(scores.B, scores.H, scores.S, 1))
        joined = b.op(softmax.softmax, b.op(slicing.concat, logits, column, axis=3), axis=-1)
        weights = b.op(slicing.slice_, joined, starts=(0,), ends=(scores.T,), axes=(3,), steps=(1,))
    if wide is not scores.dtype:
        weights = b.op(cast.cast, weights, to=scores.dtype)
    return weights
