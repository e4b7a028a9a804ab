"""Tables of angles: whether a full table repeats its half, and the half that says it all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import exactdiv, known_equal
from regraft.ir.graph import Value
from regraft.ir.ops import cast, functions, gathering, reshaping, slicing
from regraft.passes.analysis.views import emit_view, leaves, scalar_factor, view_of

_MAX_TABLE_BYTES = 1 << 24

_THROUGH = frozenset({functions.cos, functions.sin, cast.cast})


def doubled(table: Value) -> str | None:
    """Returns how a full table repeats its half: `half`, `interleaved`, or None for not at all."""
    for value in _ways_up(table):
        node = value.producer
        if node is not None and node.op is slicing.concat and len(node.inputs) == 2:
            is_last = node.attrs["axis"] % (value.rank or 1) == (value.rank or 1) - 1
            return "half" if is_last and node.inputs[0] is node.inputs[1] else None
        array = constant_of(value, _MAX_TABLE_BYTES) if is_constant(value) else None
        if array is not None and array.ndim and array.shape[-1] % 2 == 0:
            half = array.shape[-1] // 2
            if np.array_equal(array[..., :half], array[..., half:]):
                return "half"
            return "interleaved" if np.array_equal(array[..., ::2], array[..., 1::2]) else None
        if value.shape is None:
            return None
        view = view_of(value)
        last = leaves(view.axes[-1]) if view.axes else []
        own = view.atoms()
        if len(last) > 1 and last[-1] not in own and last[-1].size == 2:
            return "interleaved"
        if len(last) > 1 and last[0] not in own and last[0].size == 2:
            return "half"
    return None


def _ways_up(table: Value) -> Iterator[Value]:
    """Yields what a table is computed from, position by position in its last axis."""
    value: Value | None = table
    while value is not None:
        yield value
        value = _source(value)


def _source(value: Value) -> Value | None:
    """Returns the operand whose last axis runs over the same channels, or None."""
    node = value.producer
    if node is None or value.shape is None:
        return None
    x = node.inputs[0] if node.inputs else None
    if node.op in _THROUGH:
        return x
    factor = scalar_factor(node)
    if factor is not None:
        return node.inputs[factor[0]]
    if x is None or x.shape is None or not x.shape or not value.shape:
        return None
    if node.op is reshaping.reshape and known_equal(x.shape[-1], value.shape[-1]):
        return x
    if node.op is gathering.gather and node.attrs["axis"] % len(x.shape) != len(x.shape) - 1:
        return x
    if node.op is slicing.slice_:
        axes = node.static("axes")
        rank = len(x.shape)
        if isinstance(axes, tuple) and all(axis % rank != rank - 1 for axis in axes):
            return x
    return None


def half_table(b: Builder, table: Value, interleaved: bool) -> Value:
    """Builds the half of a full table that says it all, as far up as that is cheap."""
    node = table.producer
    if node is None or table.shape is None:
        raise AssertionError("the table was looked at before")
    size = exactdiv(table.shape[-1], 2)
    if node.op is slicing.concat and node.inputs[0] is node.inputs[1] and not interleaved:
        return node.inputs[0]  # type: ignore[return-value]  # an operand of concat is present
    source = _source(table)
    if source is not None and doubled(source) is not None:
        half = half_table(b, source, interleaved)
        if node.op is reshaping.reshape:
            return b.op(reshaping.reshape, half, shape=(*table.shape[:-1], size))
        operands = [half if value is source else value for value in node.inputs]
        return b.op(node.op, *operands, **node.attrs)
    view = view_of(table)
    last = leaves(view.axes[-1])
    copies = [atom for atom in last if atom not in view.atoms()]
    if copies:
        kept = [atom for atom in last if atom not in copies]
        return emit_view(b, view, [*view.axes[:-1], kept])
    axis, step = (table.rank or 1) - 1, 2 if interleaved else 1
    end = table.shape[-1] if interleaved else size
    return b.op(slicing.slice_, table, starts=(0,), ends=(end,), axes=(axis,), steps=(step,))
