"""Importers of parts of tensors and their union: slice, select, split, cat, stack, flip, roll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.torch.call import CallImport, Import, Importer, row
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.ir.dims import Dim, DimLike, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.slicing import concat, slice_, split
from regraft.ir.types import DType

_TO_FRONT = -((1 << 63) - 1)


def sliced(
    c: CallImport, x: Value, axis: int, start: DimLike, end: DimLike, step: int = 1
) -> Value:
    """Returns `x[..., start:end:step, ...]` along an axis."""
    return c.b.op(slice_, x, starts=(start,), ends=(end,), axes=(axis,), steps=(step,))


def position(value: DimLike, size: DimLike) -> DimLike:
    """Returns a position counted from the front."""
    return size + value if isinstance(value, int) and value < 0 else value


def _slice(c: CallImport) -> Value:
    x = c.value("self")
    shape = shape_of(x)
    axis = c.axis("dim", len(shape))
    start, end, step = c.attr("start"), c.attr("end"), c.attr("step")
    start = 0 if start is None else start
    count = c.shape[axis]
    if step == 1 and known_equal(count, shape[axis]):
        return x
    end = shape[axis] if end is None else end
    if step == 1 and isinstance(start, int):
        if start >= 0:
            end = start + count  # the export knows whether `end` lies inside
        elif end == shape[axis] or (isinstance(end, int) and end > 1 << 31):
            start, end = shape[axis] - count, shape[axis]
    return sliced(c, x, axis, start, end, step)


def _select(c: CallImport) -> Value:
    x, index = c.value("self"), c.attr("index")
    axis = c.axis("dim", len(shape_of(x)))
    return selected(c, x, axis, index)


def selected(c: CallImport, x: Value, axis: int, index: DimLike) -> Value:
    """Returns one position of an axis, without the axis."""
    if isinstance(index, Dim):
        return c.b.op(squeeze, sliced(c, x, axis, index, index + 1), axes=(axis,))
    return c.b.op(gather, x, c.number(index, DType.I64), axis=axis)


def _narrow(c: CallImport) -> Value:
    x = c.value("self")
    shape = shape_of(x)
    axis = c.axis("dim", len(shape))
    start = position(c.attr("start"), shape[axis])
    if known_equal(c.shape[axis], shape[axis]):
        return x
    return sliced(c, x, axis, start, start + c.attr("length"))


def _split(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    axis = c.axis("dim", len(shape_of(x)))
    return parts_of(c, x, axis, [(result.shape or ())[axis] for result in c.results])


def parts_of(c: CallImport, x: Value, axis: int, sizes: Sequence[DimLike]) -> Sequence[Value]:
    """Returns the parts of an axis of the given sizes."""
    if len(sizes) == 1:
        return [x]
    return c.b.multi(split, x, num_outputs=len(sizes), axis=axis, sizes=tuple(sizes))


def _split_along(axis_of_rank: Any) -> Importer:
    def run(c: CallImport) -> Sequence[Value]:
        x = c.value("self")
        axis = axis_of_rank(len(shape_of(x)))
        return parts_of(c, x, axis, [(result.shape or ())[axis] for result in c.results])

    return run


def _unbind(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    axis = c.axis("dim", len(shape_of(x)))
    parts = parts_of(c, x, axis, (1,) * len(c.results))
    return [c.b.op(squeeze, part, axes=(axis,)) for part in parts]


def joined(c: CallImport, values: Sequence[Value], axis: int) -> Value:
    """Returns the concatenation along an axis."""
    return values[0] if len(values) == 1 else c.b.op(concat, *values, axis=axis)


def _cat(c: CallImport) -> Value:
    values = c.values("tensors")
    rank = len(c.shape)
    # an empty vector adds nothing to tensors of any rank
    kept = [value for value in values if value.shape != (0,) or rank == 1] or list(values[:1])
    return joined(c, [c.cast(value, c.dtype) for value in kept], c.axis("dim", rank))


def _stack(c: CallImport) -> Value:
    axis = c.axis("dim", len(c.shape))
    values = [c.cast(value, c.dtype) for value in c.values("tensors")]
    return joined(c, [c.b.op(unsqueeze, value, axes=(axis,)) for value in values], axis)


def _joined_at_least(rank: int, axis_of_rank: Any) -> Importer:
    """Returns an importer of `hstack` and the like: more axes, then concatenation."""

    def run(c: CallImport) -> Value:
        values = []
        for value in c.values("tensors"):
            shape = shape_of(value)
            if len(shape) < rank:
                full = _padded(shape, rank)
                value = reshaped(c, value, full)
            values.append(c.cast(value, c.dtype))
        return joined(c, values, axis_of_rank(len(c.shape)))

    return run


def _padded(shape: tuple[DimLike, ...], rank: int) -> tuple[DimLike, ...]:
    if rank == 3:
        return (1, 1, 1) if not shape else (1, *shape, 1) if len(shape) == 1 else (*shape, 1)
    return (*(1,) * (rank - len(shape)), *shape)


def _column_stack(c: CallImport) -> Value:
    values = []
    for value in c.values("tensors"):
        shape = shape_of(value)
        full = shape if len(shape) > 1 else ((shape or (1,))[0], 1)
        values.append(c.cast(reshaped(c, value, full), c.dtype))
    return joined(c, values, 1)


def _flip(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(shape_of(x))
    axes = tuple(axis % rank for axis in c.attr("dims")) if rank else ()
    if not axes:
        return x
    ones = (-1,) * len(axes)
    return c.b.op(slice_, x, starts=ones, ends=(_TO_FRONT,) * len(axes), axes=axes, steps=ones)


def _flip_axis(axis: int) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        return sliced(c, x, axis % len(shape_of(x)), -1, _TO_FRONT, -1)

    return run


def _roll(c: CallImport) -> Value:
    x = c.value("self")
    shape = shape_of(x)
    shifts, dims = c.sizes("shifts"), c.attr("dims")
    if not dims:
        flat = rolled(c, reshaped(c, x, (product(shape),)), 0, shifts[0])
        return reshaped(c, flat, shape)
    for axis, shift in zip(dims, shifts, strict=True):
        x = rolled(c, x, axis % len(shape), shift)
    return x


def rolled(c: CallImport, x: Value, axis: int, shift: DimLike) -> Value:
    """Returns the tensor with the positions of an axis shifted around."""
    size = shape_of(x)[axis]
    if isinstance(size, int) and isinstance(shift, int) and size:
        shift = shift % size
    if shift == 0 or size == 0:
        return x
    # the last `shift` positions come first; of a negative shift the first ones come last
    cut = size - shift if not isinstance(shift, int) or shift > 0 else -shift
    head = sliced(c, x, axis, cut, size)
    return joined(c, [head, sliced(c, x, axis, 0, cut)], axis)


def _rot90(c: CallImport) -> Value:
    x, turns = c.value("self"), c.attr("k") % 4
    rank = len(shape_of(x))
    first, second = (axis % rank for axis in c.attr("dims"))
    perm = list(range(rank))
    perm[first], perm[second] = second, first
    flips = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[turns]
    for axis in flips:
        x = sliced(c, x, axis, -1, _TO_FRONT, -1)
    return moved(c, x, perm) if turns % 2 else x


IMPORTS: tuple[Import, ...] = (
    row(_slice, "aten.slice.Tensor", "aten.slice_copy.Tensor"),
    row(_select, "aten.select.int", "aten.select_copy.int"),
    row(_narrow, "aten.narrow.default", "aten.narrow_copy.default"),
    row(
        _split, "aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default",
        "aten.split_with_sizes_copy.default", "aten.split_copy.Tensor", "aten.chunk.default",
        "aten.unsafe_chunk.default", "aten.unsafe_split.Tensor",
        "aten.unsafe_split_with_sizes.default", "aten.tensor_split.sections",
        "aten.tensor_split.indices",
    ),
    row(
        _split_along(lambda rank: 1 if rank > 1 else 0), "aten.hsplit.int", "aten.hsplit.array"
    ),
    row(_split_along(lambda _: 0), "aten.vsplit.int", "aten.vsplit.array"),
    row(_unbind, "aten.unbind.int", "aten.unbind_copy.int"),
    row(_cat, "aten.cat.default", "aten.concat.default", "aten.concatenate.default"),
    row(_stack, "aten.stack.default"),
    row(
        _joined_at_least(1, lambda rank: 0 if rank == 1 else 1), "aten.hstack.default"
    ),
    row(_joined_at_least(2, lambda _: 0), "aten.vstack.default", "aten.row_stack.default"),
    row(_joined_at_least(3, lambda _: 2), "aten.dstack.default"),
    row(_column_stack, "aten.column_stack.default"),
    row(_flip, "aten.flip.default"),
    row(_flip_axis(1), "aten.fliplr.default"),
    row(_flip_axis(0), "aten.flipud.default"),
    row(_roll, "aten.roll.default"),
    row(_rot90, "aten.rot90.default"),
)  # fmt: skip
