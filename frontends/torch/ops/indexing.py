"""Importers of elements picked by index: index, gather, embedding, masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.ir.dims import DimLike, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops import logical, selecting
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.cast import cast
from regraft.ir.ops.content import at_least
from regraft.ir.ops.fill import range_
from regraft.ir.ops.gathering import gather, gather_elements, gather_nd
from regraft.ir.ops.reduce import reduce_max
from regraft.ir.ops.repeating import expand
from regraft.ir.ops.reshaping import reshape, squeeze, transpose, unsqueeze
from regraft.ir.ops.slicing import concat, split
from regraft.ir.types import DType

Indices = tuple[Value | None, ...]


def position_lists(c: CallImport, x: Value, indices: Sequence[Value | None]) -> Indices:
    """Returns one integer tensor, or None, per axis of `x`: masks become positions."""
    found: list[Value | None] = []
    for index in indices:
        if index is None or index.dtype not in (DType.BOOL, DType.U8):
            found.append(index)
            continue
        where = c.b.op(selecting.non_zero, c.cast(index, DType.BOOL))  # [rank, count]
        rank = index.rank or 1
        rows = [where] if rank == 1 else c.b.multi(split, where, num_outputs=rank, axis=0)
        found.extend(c.b.op(squeeze, line, axes=(0,)) for line in rows)
    return (*found, *(None,) * (len(shape_of(x)) - len(found)))


def _is_whole_range(index: Value, size: DimLike) -> bool:
    """Returns whether an index holds 0, 1, …, size - 1 in order, however it is shaped."""
    value = index
    while value.producer is not None:
        node = value.producer
        if node.op is range_:
            attrs = node.attrs
            limit = attrs["limit"]
            starts = attrs["start"] == 0 and attrs["delta"] == 1
            return starts and limit is not None and known_equal(limit, size)
        if node.op not in (reshape, unsqueeze, cast) or not node.inputs[0]:
            return False
        value = node.inputs[0]
    return False


def _orthogonal_axes(indices: Sequence[Value], rank: int) -> list[int] | None:
    """Returns the only long axis of each index among the result's `rank`, if no two share one."""
    taken: list[int] = []
    for index in indices:
        shape = shape_of(index)
        long = [axis - len(shape) + rank for axis, size in enumerate(shape) if size != 1]
        if len(long) > 1 or any(axis in taken for axis in long):
            return None
        taken.append(long[0] if long else -1)
        if not long:
            return None
    return taken


def _index(c: CallImport) -> Value:
    x = c.value("self")
    indices = position_lists(c, x, c.args["indices"])
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if not given:
        return x
    if len(given) == 1:
        if given[0].rank == 1 and _is_whole_range(given[0], shape_of(x)[axes[0]]):
            return x
        return c.b.op(gather, x, given[0], axis=axes[0])
    rank = max(len(shape_of(index)) for index in given)
    lines = _orthogonal_axes(given, rank)
    if lines is not None and sorted(lines) == lines:
        return _grid(c, x, axes, given, lines, rank)
    return _points(c, x, axes, given)


def _grid(
    c: CallImport, x: Value, axes: list[int], given: Sequence[Value], lines: list[int], rank: int
) -> Value:
    """Picks along every axis on its own: indices of shapes `[B, 1]` and `[1, S]` span a grid."""
    sizes: list[DimLike] = [1] * rank
    for axis, index, line in zip(axes, given, lines, strict=True):
        count = product(shape_of(index))
        sizes[line] = count
        if not _is_whole_range(index, shape_of(x)[axis]):
            x = c.b.op(gather, x, reshaped(c, index, (count,)), axis=axis)
    return _placed(c, x, axes, sizes)


def _placed(c: CallImport, x: Value, axes: list[int], sizes: Sequence[DimLike]) -> Value:
    """Returns picked axes as axes of the index: in place when adjacent, else in front."""
    shape = shape_of(x)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    at = axes[0] if adjacent else 0
    x = moved(c, x, (*rest[:at], *axes, *rest[at:]))
    before, after = rest[:at], rest[at:]
    full = [*(shape[i] for i in before), *sizes, *(shape[i] for i in after)]
    return reshaped(c, x, full)


def _points(c: CallImport, x: Value, axes: list[int], given: Sequence[Value]) -> Value:
    """Picks single positions of several axes at once."""
    rank = len(shape_of(x))
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    rest = [axis for axis in range(rank) if axis not in axes]
    x = moved(c, x, (*axes, *rest))
    picked = c.b.op(gather_nd, x, stacked(c, given))
    at = axes[0] if adjacent else 0
    if not at:
        return picked
    num_index = len(shape_of(picked)) - len(rest)
    order = (*range(num_index, num_index + at), *range(num_index))
    return moved(c, picked, (*order, *range(num_index + at, len(shape_of(picked)))))


def stacked(c: CallImport, indices: Sequence[Value]) -> Value:
    """Returns index tensors, broadcast to one shape, next to each other along a new last axis."""
    total = c.cast(indices[0], DType.I64)
    shape = shape_of(total)
    for index in indices[1:]:
        shape = _broadcast(shape, shape_of(index))
    columns = []
    for index in indices:
        full = expanded(c, c.cast(index, DType.I64), shape)
        columns.append(c.b.op(unsqueeze, full, axes=(len(shape),)))
    return columns[0] if len(columns) == 1 else c.b.op(concat, *columns, axis=len(shape))


def _broadcast(a: Sequence[DimLike], b: Sequence[DimLike]) -> tuple[DimLike, ...]:
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    return tuple(q if p == 1 else p for p, q in zip(left, right, strict=True))


def _index_select(c: CallImport) -> Value:
    x, index = c.value("self"), c.value("index")
    if not x.rank:
        return x
    return c.b.op(gather, x, reshaped(c, index, (product(shape_of(index)),)),
                  axis=c.axis("dim", x.rank))  # fmt: skip


def _gather(c: CallImport) -> Value:
    x, index = c.value("self"), c.value("index")
    if not x.rank or not index.rank:
        flat = c.b.op(gather, reshaped(c, x, (product(shape_of(x)),)), index, axis=0)
        return reshaped(c, flat, c.shape)
    return c.b.op(gather_elements, x, index, axis=c.axis("dim", x.rank))


def _take_along(c: CallImport) -> Value:
    x, index = c.value("self"), c.value("indices")
    if c.attr("dim") is None:
        x = reshaped(c, x, (product(shape_of(x)),))
        return c.b.op(gather, x, reshaped(c, index, (product(shape_of(index)),)), axis=0)
    axis = c.axis("dim", len(shape_of(x)))
    pairs = list(zip(shape_of(x), shape_of(index), strict=True))
    shape = [b if a == 1 else a for a, b in pairs]
    x = expanded(c, x, [pairs[i][0] if i == axis else size for i, size in enumerate(shape)])
    index = expanded(c, index, [pairs[i][1] if i == axis else s for i, s in enumerate(shape)])
    return c.b.op(gather_elements, x, index, axis=axis)


def _take(c: CallImport) -> Value:
    x = c.value("self")
    return c.b.op(gather, reshaped(c, x, (product(shape_of(x)),)), c.value("index"), axis=0)


def _embedding(c: CallImport) -> Value:
    return c.b.op(gather, c.value("weight"), c.value("indices"), axis=0)


def _one_hot(c: CallImport) -> Value:
    depth = c.attr("num_classes")
    if isinstance(depth, int) and depth < 0:
        raise UnsupportedCallError("the number of classes is known at run time only")
    values = c.b.constant(np.array([0, 1], np.int64))
    return c.b.op(selecting.one_hot, c.value("self"), None, values, depth=depth, axis=-1)


def _masked_select(c: CallImport) -> Value:
    x, mask = c.value("self"), c.value("mask")
    shape = _broadcast(shape_of(x), shape_of(mask))
    count = product(shape)
    flat = reshaped(c, expanded(c, x, shape), (count,))
    kept = reshaped(c, expanded(c, mask, shape), (count,))
    return c.b.op(selecting.compress, flat, kept)


def _nonzero(c: CallImport) -> Value:
    x = c.value("self")
    where = c.b.op(selecting.non_zero, x)
    if not x.rank:
        raise UnsupportedCallError("the positions in a 0-d tensor")
    return c.b.op(transpose, where, perm=(1, 0))


def _nonzero_lists(c: CallImport) -> Sequence[Value]:
    x = c.value("self" if "self" in c.args else "condition")
    if not x.rank:
        raise UnsupportedCallError("the positions in a 0-d tensor")
    return [index for index in position_lists(c, x, [c.cast(x, DType.BOOL)]) if index is not None]


def _index_fill(c: CallImport) -> Value:
    x, index = c.value("self"), c.value("index")
    rank = len(shape_of(x))
    if not rank or not at_least(product(shape_of(index)), 1):
        raise UnsupportedCallError("a 0-d tensor or an empty index")
    axis = c.axis("dim", rank)
    size = shape_of(x)[axis]
    shift = c.number(size, DType.I64)
    index = c.cast(reshaped(c, index, (1, product(shape_of(index)))), DType.I64)
    position = c.b.op(range_, start=0, limit=size, delta=1, dtype=DType.I64)
    position = c.b.op(unsqueeze, position, axes=(1,))
    from_front = c.b.op(logical.where, c.b.op(logical.less, index, c.number(0, DType.I64)),
                        c.b.op(add, index, shift), index)  # fmt: skip
    hit = c.cast(c.b.op(logical.equal, position, from_front), DType.I32)
    hit = c.cast(c.b.op(reduce_max, hit, axes=(1,), keepdims=False), DType.BOOL)
    hit = reshaped(c, hit, [size if i == axis else 1 for i in range(rank)])
    result = c.b.op(logical.where, hit, c.operand("value"), x)
    return result if result.shape == c.shape else c.b.op(expand, result, shape=c.shape)


def _is_in(c: CallImport) -> Value:
    x, test = c.value("elements"), c.value("test_elements")
    test = reshaped(c, test, (product(shape_of(test)),))
    same = c.b.op(logical.equal, c.b.op(unsqueeze, x, axes=(len(shape_of(x)),)),
                  c.cast(test, x.dtype or test.dtype or DType.I64))  # fmt: skip
    axes = (len(shape_of(x)),)
    found = c.b.op(reduce_max, c.cast(same, DType.I32), axes=axes, keepdims=False)
    found = c.cast(found, DType.BOOL)
    return c.b.op(logical.logical_not, found) if c.attr("invert") else found


IMPORTS: tuple[Import, ...] = (
    row(_index, "aten.index.Tensor", "aten._unsafe_index.Tensor"),
    row(_index_select, "aten.index_select.default"),
    row(_gather, "aten.gather.default"),
    row(_take_along, "aten.take_along_dim.default"),
    row(_take, "aten.take.default"),
    row(_embedding, "aten.embedding.default"),
    row(_one_hot, "aten.one_hot.default"),
    row(_masked_select, "aten.masked_select.default"),
    row(_nonzero, "aten.nonzero.default", "aten.argwhere.default"),
    row(_nonzero_lists, "aten.nonzero_numpy.default", "aten.where.default"),
    row(_index_fill, "aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor"),
    row(_is_in, "aten.isin.Tensor_Tensor"),
)
