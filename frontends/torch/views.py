"""Inverses of views: a tensor after one of its views was overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, dim_min, known_equal
from regraft.ir.graph import Value
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import range_
from regraft.ir.ops.reshaping import reshape, transpose, unsqueeze
from regraft.ir.ops.scattering import scatter_nd
from regraft.ir.ops.slicing import concat, slice_
from regraft.ir.types import DType

Inverse = Callable[[Builder, Value, Value, Mapping[str, Any], int], Value]
"""(builder, tensor, its overwritten view, arguments of the view, result index) -> tensor after."""


def _shape(value: Value) -> tuple[DimLike, ...]:
    if value.shape is None:
        raise AssertionError("tensors of an export have shapes")
    return value.shape


def _axis(value: Value, axis: int) -> int:
    return axis + len(_shape(value)) if axis < 0 else axis


def _reshaped(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    """The view has the same elements in the same order."""
    del args, idx
    view = view if view.dtype is before.dtype else b.op(cast, view, to=before.dtype)
    return view if view.shape == before.shape else b.op(reshape, view, shape=_shape(before))


def _permuted(b: Builder, before: Value, view: Value, order: list[int]) -> Value:
    rank = len(_shape(before))
    inverse = [0] * rank
    for new, old in enumerate(order):
        inverse[old % rank] = new
    return b.op(transpose, view, perm=tuple(inverse))


def _permute(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    del idx
    return _permuted(b, before, view, list(args["dims"]))


def _swap(first: str, second: str) -> Inverse:
    def undo(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
        del idx
        order = list(range(len(_shape(before))))
        i, j = _axis(before, args[first]), _axis(before, args[second])
        order[i], order[j] = order[j], order[i]
        return _permuted(b, before, view, order)

    return undo


def _reversed(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    del args, idx
    return _permuted(b, before, view, list(range(len(_shape(before))))[::-1])


def write_slice(
    b: Builder, before: Value, part: Value, axis: int, start: DimLike, end: DimLike, step: int = 1
) -> Value:
    """Returns `before` with `before[..., start:end:step, ...]` replaced by `part`.

    Args:
        b: Where nodes are made.
        before: `T[*shape]`.
        part: The new content of the slice.
        axis: Axis that is sliced, not negative.
        start: First position, between 0 and the size.
        end: Position after the last, between `start` and the size.
        step: Distance of the positions.
    """
    size = _shape(before)[axis]
    if step != 1:
        return _write_strided(b, before, part, axis, start, end, step)
    parts = [part]
    if not known_equal(start, 0):
        head = b.op(slice_, before, starts=(0,), ends=(start,), axes=(axis,), steps=(1,))
        parts.insert(0, head)
    if not known_equal(end, size):
        tail = b.op(slice_, before, starts=(end,), ends=(size,), axes=(axis,), steps=(1,))
        parts.append(tail)
    return part if len(parts) == 1 else b.op(concat, *parts, axis=axis)


def _write_strided(
    b: Builder, before: Value, part: Value, axis: int, start: DimLike, end: DimLike, step: int
) -> Value:
    """Scatters along the first axis: the sliced axis goes there and back."""
    rank = len(_shape(before))
    order = (axis, *(i for i in range(rank) if i != axis))
    front = b.op(transpose, before, perm=order) if axis else before
    rows = b.op(transpose, part, perm=order) if axis else part
    where = b.op(range_, start=start, limit=end, delta=step, dtype=DType.I64)
    where = b.op(unsqueeze, where, axes=(1,))
    written = b.op(scatter_nd, front, where, rows)
    return _permuted(b, before, written, list(order)) if axis else written


def _start(start: DimLike | None, size: DimLike) -> DimLike:
    """Returns the first position of a slice, counted from the front and within the axis."""
    if start is None or start == 0:
        return 0
    if isinstance(start, int) and start < 0:
        start = size + start
    return dim_min(start, size)


def _slice(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    del idx
    axis, step = _axis(before, args["dim"]), args.get("step", 1)
    start = _start(args.get("start"), _shape(before)[axis])
    count = _shape(view)[axis]
    return write_slice(b, before, view, axis, start, start + (count - 1) * step + 1, step)


def _narrow(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    return _slice(b, before, view, {"dim": args["dim"], "start": args["start"]}, idx)


def _select(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    axis, index = _axis(before, args["dim"]), args["index"]
    if isinstance(index, int) and index < 0:
        index = _shape(before)[axis] + index
    part = b.op(unsqueeze, view, axes=(axis,))
    return write_slice(b, before, part, axis, index, index + 1)


def _unbind(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    return _select(b, before, view, {"dim": args["dim"], "index": idx}, 0)


def _split(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    axis = _axis(before, args["dim"])
    size = args["split_size"]
    start = sum(size[:idx]) if isinstance(size, tuple) else size * idx
    return _slice(b, before, view, {"dim": axis, "start": start}, 0)


def _split_sizes(
    b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int
) -> Value:
    start = sum(args["split_sizes"][:idx])
    return _slice(b, before, view, {"dim": args["dim"], "start": start}, 0)


def _chunk(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    # every part but the last has the size of ceil(size / chunks)
    axis = _axis(before, args["dim"])
    start = -(-_shape(before)[axis] // args["chunks"]) * idx
    return _slice(b, before, view, {"dim": axis, "start": start}, 0)


def _expand(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    """Every position of an expanded axis is the same element: the first one stands for all."""
    shape, wide = _shape(before), _shape(view)
    extra = len(wide) - len(shape)
    axes = tuple(
        axis for axis, size in enumerate(wide)
        if axis < extra or not known_equal(size, shape[axis - extra])
    )  # fmt: skip
    if axes:
        count = len(axes)
        view = b.op(
            slice_, view, starts=(0,) * count, ends=(1,) * count, axes=axes, steps=(1,) * count
        )
    return _reshaped(b, before, view, args, idx)


def _diagonal(b: Builder, before: Value, view: Value, args: Mapping[str, Any], idx: int) -> Value:
    del idx
    return write_diagonal(
        b, before, view, args.get("offset", 0), _axis(before, args.get("dim1", 0)),
        _axis(before, args.get("dim2", 1)),
    )  # fmt: skip


def write_diagonal(
    b: Builder, before: Value, part: Value, offset: int, dim1: int, dim2: int
) -> Value:
    """Returns `before` with the diagonal of two axes replaced.

    Args:
        b: Where nodes are made.
        before: `T[*shape]`.
        part: The new diagonal, `T[*rest, n]`: the other axes in order, then the places on it.
        offset: How far the diagonal lies to the right of the main one.
        dim1: Axis of its rows, not negative.
        dim2: Axis of its columns, not negative.
    """
    shape = _shape(before)
    rest = [axis for axis in range(len(shape)) if axis not in (dim1, dim2)]
    order = (dim1, dim2, *rest)
    count = _shape(part)[-1]
    rows = b.op(transpose, part, perm=(len(rest), *range(len(rest)))) if rest else part
    first, second = max(-offset, 0), max(offset, 0)
    columns = [
        b.op(unsqueeze, b.op(range_, start=start, limit=start + count, delta=1, dtype=DType.I64),
             axes=(1,))
        for start in (first, second)
    ]  # fmt: skip
    where = b.op(concat, *columns, axis=1)
    front = b.op(transpose, before, perm=order) if order != tuple(range(len(shape))) else before
    written = b.op(scatter_nd, front, where, rows)
    return _permuted(b, before, written, list(order))


INVERSES: dict[str, Inverse] = {
    **dict.fromkeys(
        (
            "aten.view.default",
            "aten.reshape.default",
            "aten._unsafe_view.default",
            "aten.view_as.default",
            "aten.unsqueeze.default",
            "aten.squeeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.alias.default",
            "aten.detach.default",
            "aten.contiguous.default",
            "aten.to.dtype",
            "aten.to.device",
            "aten.to.dtype_layout",
            "aten.to.other",
            "aten.type_as.default",
            "aten.lift_fresh.default",
            # these return the tensor itself out of training, or when nothing changes
            "aten.dropout.default",
            "aten.feature_dropout.default",
            "aten.alpha_dropout.default",
            "aten.reshape_as.default",
            "aten.ravel.default",
        ),
        _reshaped,
    ),
    "aten.permute.default": _permute,
    "aten.transpose.int": _swap("dim0", "dim1"),
    "aten.swapaxes.default": _swap("axis0", "axis1"),
    "aten.swapdims.default": _swap("dim0", "dim1"),
    "aten.t.default": _reversed,
    "aten.numpy_T.default": _reversed,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand,
    "aten.diagonal.default": _diagonal,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.select.int": _select,
    "aten.unbind.int": _unbind,
    "aten.split.Tensor": _split,
    "aten.split.sizes": _split,
    "aten.split_with_sizes.default": _split_sizes,
    "aten.chunk.default": _chunk,
    "aten.unsafe_split.Tensor": _split,
    "aten.unsafe_split_with_sizes.default": _split_sizes,
    "aten.unsafe_chunk.default": _chunk,
}
"""By overload; a write to a view of another overload is reported as unsupported."""
