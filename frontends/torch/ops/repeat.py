"""Importers of copies around or next to elements: expand, repeat, pad, windows, diagonals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.frontends.torch.ops.slicing import sliced
from regraft.ir.dims import Dim, DimLike, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical
from regraft.ir.ops.cumulative import cumsum
from regraft.ir.ops.fill import range_, trilu
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.reduce import reduce_sum
from regraft.ir.ops.repeating import expand, pad, tile
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.types import DType


def expanded(c: CallImport, x: Value, shape: Sequence[DimLike]) -> Value:
    """Returns a tensor broadcast to a shape; the value itself when it has the shape."""
    shape = tuple(shape)
    return x if x.shape == shape else c.b.op(expand, x, shape=shape)


def positions(c: CallImport, count: DimLike) -> Value:
    """Returns 0, 1, 2, … as `i64[count]`."""
    return c.b.op(range_, start=0, limit=count, delta=1, dtype=DType.I64)


def _expand(c: CallImport) -> Value:
    return expanded(c, c.value("self"), c.shape)


def _broadcast_tensors(c: CallImport) -> Sequence[Value]:
    shapes = [result.shape or () for result in c.results]
    return [expanded(c, x, s) for x, s in zip(c.values("tensors"), shapes, strict=True)]


def _repeat(name: str) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        shape, repeats = shape_of(x), c.sizes(name)
        missing = len(shape) - len(repeats)
        repeats = (*(1,) * max(missing, 0), *repeats)
        x = reshaped(c, x, (*(1,) * max(-missing, 0), *shape))
        return x if all(count == 1 for count in repeats) else c.b.op(tile, x, repeats=repeats)

    return run


def _repeat_each(c: CallImport) -> Value:
    x, count = c.value("self"), c.attr("repeats")
    dim = c.attr("dim")
    if dim is None:
        x = reshaped(c, x, (product(shape_of(x)),))
    shape = shape_of(x)
    axis = 0 if dim is None else c.axis("dim", len(shape))
    if count == 1:
        return x
    copies = c.b.op(unsqueeze, x, axes=(axis + 1,))
    full = (*shape[: axis + 1], count, *shape[axis + 1 :])
    return reshaped(c, c.b.op(expand, copies, shape=full), c.shape)


def _repeat_by(c: CallImport) -> Value:
    """Positions of the elements by how many ends of runs lie before each result."""
    repeats, x = c.value("repeats"), c.args.get("self")
    if c.attr("output_size") is None:
        raise UnsupportedCallError("the number of results is known at run time only")
    source = x if isinstance(x, Value) else None
    dim = c.args.get("dim")
    if source is not None and dim is None:
        source = reshaped(c, source, (product(shape_of(source)),))
    axis = 0 if dim is None else int(dim) % max(len(shape_of(source or repeats)), 1)
    count: DimLike = c.shape[axis]
    ends = _running_sum(c, c.cast(repeats, DType.I64))
    if source is not None and shape_of(ends) == (1,):
        ends = expanded(c, ends, (shape_of(source)[axis],))
        ends = c.b.op(arithmetic.mul, ends, _from_one(c, shape_of(source)[axis]))
    where = reshaped(c, positions(c, count), (count, 1))
    passed = c.cast(c.b.op(logical.greater_or_equal, where, ends), DType.I64)
    index = _row_sums(c, passed)
    return index if source is None else c.b.op(gather, source, index, axis=axis)


def _from_one(c: CallImport, count: DimLike) -> Value:
    return c.b.op(range_, start=1, limit=count + 1, delta=1, dtype=DType.I64)


def _running_sum(c: CallImport, x: Value) -> Value:
    return c.b.op(cumsum, x, axis=0)


def _row_sums(c: CallImport, x: Value) -> Value:
    return c.b.op(reduce_sum, x, axes=(1,), keepdims=False)


# -- padding ------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def padded(
    c: CallImport, x: Value, pads: Sequence[DimLike], mode: str, value: float | None = None
) -> Value:
    """Returns a tensor with elements added around it.

    Args:
        c: The call.
        x: `T[*shape]`.
        pads: (before, after) of the last axis, then of the one before it, …; negative ones cut.
        mode: The IR's name of the mode.
        value: Fills in constant mode.
    """
    rank = len(shape_of(x))
    axes, before, after = [], [], []
    for i in range(len(pads) // 2):
        low, high = pads[2 * i], pads[2 * i + 1]
        if mode != "constant":
            x, low, high = _cut(c, x, rank - 1 - i, low, high)
        if (low, high) != (0, 0):
            axes.append(rank - 1 - i)
            before.append(low)
            after.append(high)
    if not axes:
        return x
    fill = None if not value else c.number(value, c.dtype)
    return c.b.op(pad, x, None, fill, pads=(*before[::-1], *after[::-1]), axes=tuple(axes[::-1]),
                  mode=mode)  # fmt: skip


def _cut(
    c: CallImport, x: Value, axis: int, low: DimLike, high: DimLike
) -> tuple[Value, DimLike, DimLike]:
    """Returns the tensor without what negative pads cut, and the pads that remain."""
    cut = [-p if isinstance(p, int) and p < 0 else 0 for p in (low, high)]
    if any(cut):
        x = sliced(c, x, axis, cut[0], shape_of(x)[axis] - cut[1])
    return x, 0 if cut[0] else low, 0 if cut[1] else high


def _pad(c: CallImport) -> Value:
    mode = _MODES.get(c.attr("mode"))
    if mode is None:
        raise UnsupportedCallError(f"mode `{c.attr('mode')}`")
    return padded(c, c.value("self"), c.sizes("pad"), mode, c.attr("value"))


def _constant_pad(c: CallImport) -> Value:
    return padded(c, c.value("self"), c.sizes("pad"), "constant", c.attr("value"))


def _pad_mode(name: str, mode: str) -> Importer:
    return lambda c: padded(c, c.value("self"), c.sizes(name), mode)


# -- triangles and diagonals --------------------------------------------------------------------


def _triangle(*, upper: bool) -> Importer:
    def run(c: CallImport) -> Value:
        diagonal = c.attr("diagonal")
        if isinstance(diagonal, Dim):
            return _symbolic_triangle(c, diagonal, upper=upper)
        return c.b.op(trilu, c.value("self"), k=diagonal, upper=upper)

    return run


def _symbolic_triangle(c: CallImport, diagonal: Dim, *, upper: bool) -> Value:
    x = c.value("self")
    rows, columns = shape_of(x)[-2:]
    first = c.b.op(unsqueeze, positions(c, rows), axes=(1,))
    gap = c.b.op(arithmetic.sub, positions(c, columns), first)
    spec = logical.greater_or_equal if upper else logical.less_or_equal
    kept = c.b.op(spec, gap, c.number(diagonal, DType.I64))
    if c.dtype is DType.BOOL:
        return c.b.op(logical.logical_and, kept, x)
    return c.b.op(logical.where, kept, x, c.number(0, c.dtype))


def _diagonal(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(shape_of(x))
    return diagonal_of(c, x, c.attr("offset"), c.axis("dim1", rank), c.axis("dim2", rank))


def diagonal_of(c: CallImport, x: Value, offset: int, first: int, second: int) -> Value:
    """Returns a diagonal of two axes as the last axis."""
    rest = [axis for axis in range(len(shape_of(x))) if axis not in (first, second)]
    x = moved(c, x, (*rest, first, second))
    *batch, rows, columns = shape_of(x)
    count = c.shape[-1]
    flat = reshaped(c, x, (*batch, rows * columns))
    start = offset if offset >= 0 else columns * -offset
    index = c.b.op(range_, start=0, limit=count, delta=1, dtype=DType.I64)
    index = c.b.op(arithmetic.mul, index, c.number(columns + 1, DType.I64))
    index = c.b.op(arithmetic.add, index, c.number(start, DType.I64))
    return c.b.op(gather, flat, index, axis=len(batch))


def _diag_embed(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(c.shape)
    return embedded_diagonal(c, x, c.attr("offset"), c.axis("dim1", rank), c.axis("dim2", rank))


def embedded_diagonal(c: CallImport, x: Value, offset: int, first: int, second: int) -> Value:
    """Returns matrices with the last axis on a diagonal and zeros elsewhere."""
    *batch, size = shape_of(x)
    low, high = max(-offset, 0), max(offset, 0)
    full = size + abs(offset)
    wide = padded(c, x, (high, low), "constant")  # by column
    index = positions(c, full)
    row_index = c.b.op(unsqueeze, index, axes=(1,))
    gap = c.b.op(arithmetic.sub, index, row_index)
    on = c.b.op(logical.equal, gap, c.number(offset, DType.I64))
    out = c.b.op(logical.where, on, c.b.op(unsqueeze, wide, axes=(len(batch),)),
                 c.number(0, c.dtype))  # fmt: skip
    order = [0] * (len(batch) + 2)
    rest = iter(range(len(batch)))
    for axis in range(len(order)):
        if axis == first:
            order[axis] = len(batch)
        elif axis == second:
            order[axis] = len(batch) + 1
        else:
            order[axis] = next(rest)
    return moved(c, out, order)


def _diag(c: CallImport) -> Value:
    x, offset = c.value("self"), c.attr("diagonal")
    if len(shape_of(x)) == 1:
        return embedded_diagonal(c, x, offset, 0, 1)
    return diagonal_of(c, x, offset, 0, 1)


def _mesh(c: CallImport) -> Sequence[Value]:
    tensors = c.values("tensors")
    swap = c.args.get("indexing") == "xy" and len(tensors) > 1
    results = []
    for i, (x, result) in enumerate(zip(tensors, c.results, strict=True)):
        axis = 1 - i if swap and i < 2 else i
        size = product(shape_of(x))
        line = reshaped(c, x, [size if k == axis else 1 for k in range(len(tensors))])
        results.append(expanded(c, line, result.shape or ()))
    return results


# -- windows ------------------------------------------------------------------------------------


def _windows(c: CallImport) -> Value:
    """`Tensor.unfold`: windows of one axis, their elements along a new last axis."""
    x, size, step = c.value("self"), c.attr("size"), c.attr("step")
    shape = shape_of(x)
    if not shape:
        return reshaped(c, x, c.shape)
    axis = c.axis("dimension", len(shape))
    count = c.shape[axis]
    if size == step:
        used = count * size
        if not known_equal(used, shape[axis]):
            x = sliced(c, x, axis, 0, used)
        out = reshaped(c, x, (*shape[:axis], count, size, *shape[axis + 1 :]))
    else:
        out = c.b.op(gather, x, window_index(c, count, step, size, 1), axis=axis)
    rank = len(shape) + 1
    return moved(c, out, (*(i for i in range(rank) if i != axis + 1), axis + 1))


def window_index(c: CallImport, count: DimLike, stride: int, taps: int, dilation: int) -> Value:
    """Returns `i64[count, taps]`: where every tap of every window lies."""
    offsets = np.arange(taps, dtype=np.int64) * dilation
    if isinstance(count, int):
        return c.b.constant(np.arange(count, dtype=np.int64)[:, None] * stride + offsets)
    starts = c.b.op(range_, start=0, limit=count * stride, delta=stride, dtype=DType.I64)
    return c.b.op(arithmetic.add, c.b.op(unsqueeze, starts, axes=(1,)), c.b.constant(offsets))


IMPORTS: tuple[Import, ...] = (
    row(
        _expand, "aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default",
        "aten.expand_copy.default",
    ),
    row(_broadcast_tensors, "aten.broadcast_tensors.default"),
    row(_repeat("repeats"), "aten.repeat.default"),
    row(_repeat("dims"), "aten.tile.default"),
    row(_repeat_each, "aten.repeat_interleave.self_int"),
    row(_repeat_by, "aten.repeat_interleave.Tensor", "aten.repeat_interleave.self_Tensor"),
    row(_pad, "aten.pad.default"),
    row(_constant_pad, "aten.constant_pad_nd.default"),
    row(
        _pad_mode("padding", "reflect"), "aten.reflection_pad1d.default",
        "aten.reflection_pad2d.default", "aten.reflection_pad3d.default",
    ),
    row(
        _pad_mode("padding", "edge"), "aten.replication_pad1d.default",
        "aten.replication_pad2d.default", "aten.replication_pad3d.default",
    ),
    row(_pad_mode("pad", "wrap"), "aten._pad_circular.default"),
    row(_triangle(upper=False), "aten.tril.default"),
    row(_triangle(upper=True), "aten.triu.default"),
    row(_diagonal, "aten.diagonal.default", "aten.diagonal_copy.default"),
    row(_diag_embed, "aten.diag_embed.default"),
    row(_diag, "aten.diag.default"),
    row(_mesh, "aten.meshgrid.default", "aten.meshgrid.indexing"),
    row(_windows, "aten.unfold.default", "aten.unfold_copy.default"),
)  # fmt: skip
