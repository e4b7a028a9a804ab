"""Importers of elements written by index or position: scatter, index_put, slice_scatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.indexing import position_lists, stacked
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.frontends.torch.ops.slicing import joined, position, sliced
from regraft.frontends.torch.views import write_diagonal
from regraft.ir.dims import DimLike, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical
from regraft.ir.ops.cumulative import cumsum
from regraft.ir.ops.fill import constant_of_shape, range_
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.ops.scattering import scatter_elements, scatter_nd
from regraft.ir.types import DType

_REDUCTIONS = {
    None: "none", "add": "add", "multiply": "mul", "sum": "add", "prod": "mul", "amax": "max",
    "amin": "min",
}  # fmt: skip


def _updates(c: CallImport, index: Value) -> Value:
    """Returns the written elements, as many as the index has."""
    source = c.args.get("src")
    if not isinstance(source, Value):
        value = c.operand("value")
        return expanded(c, reshaped(c, value, ()), shape_of(index))
    source = c.cast(source, c.dtype)
    for axis, (have, size) in enumerate(zip(shape_of(source), shape_of(index), strict=True)):
        if not known_equal(have, size):  # what lies beyond the index is not read
            source = sliced(c, source, axis, 0, size)
    return source


def _write(c: CallImport, x: Value, index: Value, updates: Value, reduction: str) -> Value:
    if not x.rank:
        flat = _write_rows(c, x, index, updates, reduction)
        return reshaped(c, flat, ())
    axis = c.axis("dim", x.rank)
    return c.b.op(scatter_elements, x, index, updates, axis=axis, reduction=reduction)


def _write_rows(c: CallImport, x: Value, index: Value, updates: Value, reduction: str) -> Value:
    lines = [reshaped(c, item, (product(shape_of(item)),)) for item in (x, index, updates)]
    return c.b.op(scatter_elements, *lines, axis=0, reduction=reduction)


def _scatter(reduction: str | None = None) -> Importer:
    def run(c: CallImport) -> Value:
        index = c.value("index")
        kind = _REDUCTIONS[c.args.get("reduce")] if reduction is None else reduction
        return _write(c, c.value("self"), index, _updates(c, index), kind)

    return run


_NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "amax": -np.inf, "amin": np.inf}


def _scatter_reduce(c: CallImport) -> Value:
    x, index, kind = c.value("self"), c.value("index"), c.attr("reduce")
    updates = _updates(c, index)
    include = c.attr("include_self")
    before = x
    if not include:
        neutral = _NEUTRAL[kind]
        if not c.dtype.is_float and np.isinf(neutral):
            limits = np.iinfo(c.dtype.numpy)
            neutral = limits.min if kind == "amax" else limits.max
        fill = expanded(c, c.number(neutral, c.dtype), shape_of(index))
        before = _write(c, x, index, fill, "none")
    if kind != "mean":
        return _write(c, before, index, updates, _REDUCTIONS[kind])
    total = _write(c, before, index, updates, "add")
    ones = expanded(c, c.number(1, c.dtype), shape_of(index))
    start = expanded(c, c.number(1 if include else 0, c.dtype), shape_of(x))
    count = _write(c, start, index, ones, "add")
    count = c.b.op(arithmetic.max_, count, c.number(1, c.dtype))
    if c.dtype.is_float:
        return c.b.op(arithmetic.div, total, count)
    rest = c.b.op(arithmetic.sub, total, c.b.op(arithmetic.mod, total, count))
    return c.b.op(arithmetic.div, rest, count)  # integers are rounded down


def _index_put(c: CallImport) -> Value:
    x, values = c.value("self"), c.cast(c.value("values"), c.dtype)
    indices: Sequence[Value | None] = c.args["indices"]
    mask = indices[0] if len(indices) == 1 and not c.attr("accumulate") else None
    if mask is not None and mask.dtype is DType.BOOL and product(shape_of(values)) == 1:
        rest = len(shape_of(x)) - len(shape_of(mask))
        wide = reshaped(c, mask, (*shape_of(mask), *(1,) * rest))
        return c.b.op(logical.where, wide, reshaped(c, values, ()), x)
    lists = position_lists(c, x, indices)
    axes = [axis for axis, index in enumerate(lists) if index is not None]
    given = [index for index in lists if index is not None]
    if not given:
        raise UnsupportedCallError("no index")
    reduction = "add" if c.attr("accumulate") else "none"
    return _put(c, x, axes, stacked(c, given), values, reduction)


def _put(
    c: CallImport, x: Value, axes: Sequence[int], index: Value, values: Value, reduction: str
) -> Value:
    """Writes `values`, shaped like what the index reads, at points of the given axes."""
    rank = len(shape_of(x))
    rest = [axis for axis in range(rank) if axis not in axes]
    order = (*axes, *rest)
    adjacent = list(axes) == list(range(axes[0], axes[0] + len(axes)))
    at = axes[0] if adjacent else 0
    index_shape = shape_of(index)[:-1]
    sizes = [shape_of(x)[axis] for axis in rest]
    full = (*sizes[:at], *index_shape, *sizes[at:])
    values = expanded(c, values, full)
    n = len(index_shape)
    # the axes of the index come first in a scatter
    values = moved(c, values, (*range(at, at + n), *range(at), *range(at + n, len(full))))
    out = c.b.op(scatter_nd, moved(c, x, order), index, values, reduction=reduction)
    inverse = [0] * rank
    for new, old in enumerate(order):
        inverse[old] = new
    return moved(c, out, inverse)


def _along_axis(source: str, reduction: str) -> Importer:
    """Returns an importer of `index_add` and `index_copy`: whole slices of an axis."""

    def run(c: CallImport) -> Value:
        x, index, values = c.value("self"), c.value("index"), c.cast(c.value(source), c.dtype)
        alpha = c.args.get("alpha", 1)
        if alpha != 1:
            values = c.b.op(arithmetic.mul, values, c.number(alpha, c.dtype))
        if not x.rank:
            return reshaped(c, _write_rows(c, x, index, values, reduction), ())
        index = reshaped(c, c.cast(index, DType.I64), (product(shape_of(index)), 1))
        return _put(c, x, (c.axis("dim", x.rank),), index, values, reduction)

    return run


def _slice_scatter(c: CallImport) -> Value:
    x, source = c.value("self"), c.cast(c.value("src"), c.dtype)
    shape = shape_of(x)
    axis, step = c.axis("dim", len(shape)), c.attr("step")
    size, count = shape[axis], shape_of(source)[axis]
    start = c.attr("start")
    start = 0 if start is None else position(start, size)
    source = expanded(c, source, (*shape[:axis], count, *shape[axis + 1 :]))
    if step != 1:
        index = c.b.op(range_, start=start, limit=start + count * step, delta=step,
                       dtype=DType.I64)  # fmt: skip
        return _put(c, x, (axis,), c.b.op(unsqueeze, index, axes=(1,)), source, "none")
    return _between(c, x, axis, source, start, start + count)


def _between(
    c: CallImport, x: Value, axis: int, part: Value, start: DimLike, end: DimLike
) -> Value:
    """Returns `x` with `[start, end)` of an axis replaced."""
    size = shape_of(x)[axis]
    parts = [part]
    if start != 0:
        parts.insert(0, sliced(c, x, axis, 0, start))
    if not known_equal(end, size):
        parts.append(sliced(c, x, axis, end, size))
    return joined(c, parts, axis)


def _select_scatter(c: CallImport) -> Value:
    x, source = c.value("self"), c.cast(c.value("src"), c.dtype)
    shape = shape_of(x)
    axis = c.axis("dim", len(shape))
    index = position(c.attr("index"), shape[axis])
    part = expanded(c, c.b.op(unsqueeze, source, axes=(axis,)),
                    (*shape[:axis], 1, *shape[axis + 1 :]))  # fmt: skip
    return _between(c, x, axis, part, index, index + 1)


def _diagonal_scatter(c: CallImport) -> Value:
    x, source = c.value("self"), c.cast(c.value("src"), c.dtype)
    rank = len(shape_of(x))
    return write_diagonal(c.b, x, source, c.attr("offset"), c.axis("dim1", rank),
                          c.axis("dim2", rank))  # fmt: skip


def _masked_scatter(c: CallImport) -> Value:
    """The n-th place that the mask marks takes the n-th element of the source."""
    x, mask, source = c.value("self"), c.value("mask"), c.value("source")
    shape = c.shape
    x, mask = expanded(c, x, shape), expanded(c, mask, shape)
    count = product(shape)
    marks = c.cast(reshaped(c, mask, (count,)), DType.I64)
    order = c.b.op(arithmetic.sub, c.b.op(cumsum, marks, axis=0), c.number(1, DType.I64))
    order = c.b.op(arithmetic.max_, order, c.number(0, DType.I64))
    flat = reshaped(c, source, (product(shape_of(source)),))
    last = c.number(product(shape_of(source)) - 1, DType.I64)  # unmarked places are not read
    picked = c.b.op(gather, flat, c.b.op(arithmetic.min_, order, last), axis=0)
    return c.b.op(logical.where, mask, reshaped(c, picked, shape), x)


def _put_flat(c: CallImport) -> Value:
    x = c.value("self")
    reduction = "add" if c.attr("accumulate") else "none"
    flat = _write_rows(c, x, c.value("index"), c.cast(c.value("source"), c.dtype), reduction)
    return reshaped(c, flat, shape_of(x))


def _fill(c: CallImport) -> Value:
    return expanded(c, reshaped(c, c.operand("value"), ()), c.shape)


def _zero(c: CallImport) -> Value:
    return c.b.op(constant_of_shape, shape=c.shape, value=np.zeros(1, c.dtype.numpy))


def _histogram(c: CallImport) -> Value:
    """Counts of equal bins between two bounds; the last bin holds the upper bound too."""
    x, bins = c.value("self"), c.attr("bins")
    low, high = c.attr("min"), c.attr("max")
    if low == high:
        raise UnsupportedCallError("bounds taken from the data")
    wide = DType.F64 if c.dtype is DType.F64 else DType.F32
    flat = c.cast(reshaped(c, x, (product(shape_of(x)),)), wide)
    scaled = c.b.op(arithmetic.sub, flat, c.number(float(low), wide))
    # times bins before the division, as PyTorch does: equal inputs fall into equal bins
    scaled = c.b.op(arithmetic.mul, scaled, c.number(float(bins), wide))
    scaled = c.b.op(arithmetic.div, scaled, c.number(float(high - low), wide))
    which = c.b.op(arithmetic.min_, c.cast(scaled, DType.I64), c.number(bins - 1, DType.I64))
    inside = c.b.op(
        logical.logical_and,
        c.b.op(logical.greater_or_equal, flat, c.number(float(low), wide)),
        c.b.op(logical.less_or_equal, flat, c.number(float(high), wide)),
    )
    which = c.b.op(logical.where, inside, which, c.number(bins, DType.I64))
    start = c.b.constant(np.zeros(bins + 1, c.dtype.numpy))
    ones = expanded(c, c.number(1, c.dtype), shape_of(which))
    counts = c.b.op(scatter_elements, start, which, ones, axis=0, reduction="add")
    return sliced(c, counts, 0, 0, bins)


IMPORTS: tuple[Import, ...] = (
    row(
        _scatter(), "aten.scatter.src", "aten.scatter.value", "aten.scatter.reduce",
        "aten.scatter.value_reduce",
    ),
    row(_scatter("add"), "aten.scatter_add.default"),
    row(_scatter_reduce, "aten.scatter_reduce.two"),
    row(_index_put, "aten.index_put.default", "aten._unsafe_index_put.default"),
    row(_along_axis("source", "add"), "aten.index_add.default"),
    row(_along_axis("source", "none"), "aten.index_copy.default"),
    row(_slice_scatter, "aten.slice_scatter.default"),
    row(_select_scatter, "aten.select_scatter.default"),
    row(_diagonal_scatter, "aten.diagonal_scatter.default"),
    row(_masked_scatter, "aten.masked_scatter.default"),
    row(_put_flat, "aten.put.default"),
    row(_fill, "aten.fill.Scalar", "aten.fill.Tensor"),
    row(_zero, "aten.zero.default"),
    row(_histogram, "aten.histc.default"),
)  # fmt: skip
