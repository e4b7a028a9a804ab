"""Hybrid attention in simpler operators: blocks of a window, linear attention of what left it.

The keys are lined up behind the last `window` ones before them. Linear attention then runs on that
line as it is, `window` positions behind the queries; the window of a block of queries lies in two
blocks of the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    fill,
    functions,
    linalg,
    linear_attention,
    logical,
    reduce,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.ops.shapes import operands_of
from regraft.ir.types import DType

_BLOCK = 16
"""Queries of a block at least: shorter windows waste more than blocks save."""
_LOWEST = -1e30
_TINY = 1e-30
SHARE_FLOOR = 1e-6
"""Joins the window's share of the merge `share`: a window without features is a softmax still."""


def hybrid_attention_body(node: Node, b: Builder) -> Sequence[Value]:
    """Returns the results of a `hybrid_attention` node made of simpler operators."""
    q, k, v, fq, fk = operands_of(node, 5)
    gain, visible, state, recent = node.inputs[5:]
    if None in (q.shape, k.shape, v.shape, fk.shape) or q.dtype is None:
        raise AssertionError("the body of hybrid_attention needs shapes and an element type")
    attrs, kind = node.attrs, q.dtype
    window = attrs["window"]
    wide = DType.F64 if kind is DType.F64 else DType.F32  # sums of exponentials round
    q, k, v, fq, fk = (_as(b, x, wide) for x in (q, k, v, fq, fk))
    B, K, T, D = k.shape or ()
    F, E = (fk.shape or ())[3], (v.shape or ())[3]
    present = _present(b, visible, (B, K, T), wide)
    if visible is not None:
        fk, v = (b.op(arithmetic.mul, x, present) for x in (fk, v))
    new = b.op(slicing.concat, k, fk, v, present, axis=3)
    if recent is None:
        recent = _zeros(b, (B, K, window, D + F + E + 1), wide)
    line = b.op(slicing.concat, _as(b, recent, wide), new, axis=2)
    if state is None:
        state = _zeros(b, (B, K, F, E + 1), wide)
    left = _cut(b, line, 2, 0, T)
    far, new_state = b.multi(
        linear_attention.linear_attention, fq, _cut(b, left, 3, D, D + F),
        _cut(b, left, 3, D + F, D + F + E + 1), _as(b, state, wide),
        rule="linear", scale=1.0, kv_groups=attrs["kv_groups"],
    )  # fmt: skip
    window_of = _Window(node, b, line, (D, D + F, D + F + E + 1))
    near, top = window_of.sums(q)
    if attrs["merge"] == "share":
        least = b.constant(_TINY, wide)
        own = b.op(arithmetic.max_, _cut(b, near, 3, E, E + 1), least)
        near = b.op(arithmetic.mul, near, b.op(arithmetic.div, window_of.mass(fq), own))
    if attrs["merge"] == "lse":
        rest = b.op(functions.exp, b.op(arithmetic.neg, top))
        far = b.op(arithmetic.mul, far, rest)
    if gain is not None:
        H = (q.shape or ())[1]
        factor = b.op(reshaping.reshape, _as(b, gain, wide), shape=(1, H, 1, 1))
        near = b.op(arithmetic.mul, near, factor)
    if attrs["branches"] == "both":
        total = b.op(arithmetic.add, near, far)
    elif attrs["branches"] == "none":
        total = b.op(arithmetic.mul, far, b.constant(0, wide))
    else:
        total = near if attrs["branches"] == "window" else far
    made, mass = _cut(b, total, 3, 0, E), _cut(b, total, 3, E, E + 1)
    mass = b.op(arithmetic.add, mass, b.constant(attrs["epsilon"], wide))
    out = b.op(arithmetic.div, made, mass)
    return [_as(b, out, kind), new_state, _cut(b, line, 2, T, T + window)]


def _present(b: Builder, visible: Value | None, sizes: tuple[DimLike, ...], wide: DType) -> Value:
    """Returns [B, K, T, 1]: 1 where a key is visible, else 0."""
    B, K, T = sizes
    if visible is None:
        one = np.ones(1, wide.numpy)
        return b.op(fill.constant_of_shape, shape=(B, K, T, 1), value=one)
    lined = b.op(reshaping.reshape, _as(b, visible, wide), shape=(B, 1, T, 1))
    return b.op(repeating.expand, lined, shape=(B, K, T, 1))


@dataclass(frozen=True, slots=True)
class _Window:
    """The line of keys in the parts that blocks of queries see.

    Attributes:
        node: The operator.
        b: Where to build.
        line: [B, K, window + T, X]: keys, features, values, and 1.
        ends: Where keys, features, and all end along the last axis.
    """

    node: Node
    b: Builder
    line: Value
    ends: tuple[DimLike, DimLike, DimLike]

    def sums(self, q: Value) -> tuple[Value, Value]:
        """Returns exponentials' sums [B, H, T, E + 1], and what was taken off scores [B, H, T, 1].

        Args:
            q: [B, H, T, D].
        """
        b, attrs, wide = self.b, self.node.attrs, q.dtype
        rows, spans, shown, blocks = self._parts(q)
        keys, values = _cut(b, spans, 4, 0, self.ends[0]), _cut(b, spans, 4, *self.ends[1:])
        scaled = b.op(arithmetic.mul, rows, b.constant(attrs["scale"], wide))
        scores = b.op(linalg.matmul, scaled, _flipped(b, keys))  # [B, K, N, G * size, width]
        scores = b.op(logical.where, shown, scores, b.constant(-np.inf, wide))
        top = b.op(reduce.reduce_max, scores, axes=(4,), keepdims=True)
        floor = 0.0 if attrs["merge"] == "lse" else _LOWEST
        top = b.op(arithmetic.max_, top, b.constant(floor, wide))
        weights = b.op(functions.exp, b.op(arithmetic.sub, scores, top))
        sums = b.op(linalg.matmul, weights, values)
        lead = (q.shape or ())[:3]
        return (
            _rows_back(b, sums, (*lead, (sums.shape or ())[4]), blocks),
            _rows_back(b, top, (*lead, 1), blocks),
        )

    def mass(self, fq: Value) -> Value:
        """Returns sums of products of features over the window, a little more, [B, H, T, 1]."""
        b = self.b
        rows, spans, shown, blocks = self._parts(fq)
        features = _cut(b, spans, 4, *self.ends[:2])
        products = b.op(linalg.matmul, rows, _flipped(b, features))
        products = b.op(logical.where, shown, products, b.constant(0, fq.dtype))
        total = b.op(reduce.reduce_sum, products, axes=(4,), keepdims=True)
        total = b.op(arithmetic.add, total, b.constant(SHARE_FLOOR, fq.dtype))
        return _rows_back(b, total, (*(fq.shape or ())[:3], 1), blocks)

    def _parts(self, x: Value) -> tuple[Value, Value, Value, tuple[DimLike, ...]]:
        """Returns rows of x in blocks, what each sees of the line, which of it, and K, G, N, size.

        Rows are [B, K, N, G * size, D], parts of the line [B, K, N, width, X].
        """
        b, window, G = self.b, self.node.attrs["window"], self.node.attrs["kv_groups"]
        B, _, T, D = x.shape or ()
        K, X = (self.line.shape or ())[1], self.ends[2]
        size = max(window, _BLOCK)
        if isinstance(T, int) and size >= T:  # one block, and all of the line
            size, N, width = T, 1, T + window
            spans = b.op(reshaping.reshape, self.line, shape=(B, K, 1, width, X))
        else:
            N, width = (T + (size - 1)) // size, 2 * size
            longer = _padded(b, self.line, 2, (N + 1) * size - window - T)
            blocks = b.op(reshaping.reshape, longer, shape=(B, K, N + 1, size, X))
            pair = (_cut(b, blocks, 2, 0, N), _cut(b, blocks, 2, 1, N + 1))
            spans = b.op(slicing.concat, *pair, axis=3)
        padded = _padded(b, x, 2, N * size - T)
        rows = b.op(reshaping.reshape, padded, shape=(B, K, G, N, size, D))
        rows = b.op(reshaping.transpose, rows, perm=(0, 1, 3, 2, 4, 5))
        rows = b.op(reshaping.reshape, rows, shape=(B, K, N, G * size, D))
        there = _there(b, _cut(b, spans, 4, X - 1, X))
        shown = b.op(logical.logical_and, _band(b, size, width, window, G), there)
        return rows, spans, shown, (K, G, N, size)


def _flipped(b: Builder, x: Value) -> Value:
    return b.op(reshaping.transpose, x, perm=(0, 1, 2, 4, 3))


def _rows_back(
    b: Builder, x: Value, shape: tuple[DimLike, ...], blocks: tuple[DimLike, ...]
) -> Value:
    """Returns [B, K, N, G * size, X] as [B, H, T, X]."""
    B, H, T, X = shape
    K, G, N, size = blocks
    x = b.op(reshaping.reshape, x, shape=(B, K, N, G, size, X))
    x = b.op(reshaping.transpose, x, perm=(0, 1, 3, 2, 4, 5))
    return _cut(b, b.op(reshaping.reshape, x, shape=(B, H, N * size, X)), 2, 0, T)


def _band(b: Builder, size: int, width: int, window: int, groups: int) -> Value:
    """Returns which of the line a block's queries see: bool [G * size, width]."""
    behind = np.arange(width) - np.arange(size)[:, None]
    return b.constant(np.tile((behind > 0) & (behind <= window), (groups, 1)))


def _there(b: Builder, marks: Value) -> Value:
    """Returns which positions of the line hold a key: bool [B, K, N, 1, width]."""
    is_there = b.op(logical.greater, marks, b.constant(0, marks.dtype))
    return _flipped(b, is_there)


def _padded(b: Builder, x: Value, axis: int, count: DimLike) -> Value:
    if count == 0:
        return x
    shape = x.shape or ()
    zeros = _zeros(b, (*shape[:axis], count, *shape[axis + 1 :]), x.dtype or DType.F32)
    return b.op(slicing.concat, x, zeros, axis=axis)


def _zeros(b: Builder, shape: tuple[DimLike, ...], dtype: DType) -> Value:
    return b.op(fill.constant_of_shape, shape=shape, value=np.zeros(1, dtype.numpy))


def _cut(b: Builder, x: Value, axis: int, start: DimLike, end: DimLike) -> Value:
    if start == 0 and end == (x.shape or ())[axis]:
        return x
    return b.op(slicing.slice_, x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))


def _as(b: Builder, x: Value, dtype: DType | None) -> Value:
    return x if x.dtype is dtype else b.op(cast.cast, x, to=dtype)
