"""Scores of an attention and of its linear form: what transfer of weights compares."""

from __future__ import annotations

from regraft.ir.graph import Value
from regraft.ir.ops import (
    arithmetic,
    fill,
    functions,
    linalg,
    logical,
    reshaping,
)
from regraft.ir.ops.attention_body import expand_attention
from regraft.ir.types import DType
from regraft.passes.linearization.place import NO_WEIGHT, Place

_LEAST = 1e-12
"""Products of features below this are as good as none."""


def scores_of(place: Place) -> Value:
    """Returns the scores that the softmax is of, [B, H, S, T], hidden keys at `NO_WEIGHT`."""
    node, b = place.node, place.b
    operands = [*node.inputs[:6], node.inputs[6]]
    parts = expand_attention(operands, node.attrs, b)
    return b.op(arithmetic.max_, parts.biased, b.constant(NO_WEIGHT, parts.biased.dtype))


def products(place: Place, fq: Value, fk: Value) -> Value:
    """Returns the products of features of every query with every key, [B, H, S, T]."""
    b = place.b
    B, H, S, F = fq.shape or ()
    K, G, T = place.kv_heads, place.kv_groups, (fk.shape or ())[2]
    rows = b.op(reshaping.reshape, fq, shape=(B, K, G * S, F))
    columns = b.op(reshaping.transpose, fk, perm=(0, 1, 3, 2))
    return b.op(reshaping.reshape, b.op(linalg.matmul, rows, columns), shape=(B, H, S, T))


def log_weights(place: Place, fq: Value, fk: Value, visible: Value | None) -> Value:
    """Returns logarithms of the weights that features give, [B, H, S, T], not normalized."""
    b = place.b
    made = products(place, fq, fk)
    logs = b.op(functions.log, b.op(arithmetic.max_, made, b.constant(_LEAST, made.dtype)))
    shown = shown_keys(place, visible)
    return logs if shown is None else b.op(
        logical.where, shown, logs, b.constant(NO_WEIGHT, made.dtype)
    )  # fmt: skip


def shown_keys(place: Place, visible: Value | None) -> Value | None:
    """Returns which keys a query sees, broadcast to [B, 1, S, T]; None for all."""
    b, S, T = place.b, place.shape[2], place.keys[2]
    shown = None
    if place.is_causal:
        ends = b.op(fill.range_, start=0, limit=S, delta=1, dtype=DType.I64)
        keys = b.op(fill.range_, start=0, limit=T, delta=1, dtype=DType.I64)
        shown = b.op(logical.greater_or_equal, b.op(reshaping.unsqueeze, ends, axes=(1,)), keys)
    if visible is not None:
        rows = (visible.shape or ())[0]
        lined = b.op(reshaping.reshape, visible, shape=(rows, 1, 1, T))
        shown = lined if shown is None else b.op(logical.logical_and, shown, lined)
    return shown
