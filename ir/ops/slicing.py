"""Parts of tensors and their union: slice, split, concat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.dims import (
    Dim,
    DimLike,
    Shape,
    bounds,
    ceildiv,
    dim_max,
    dim_min,
    divisor_of,
    exactdiv,
)
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Content, Node, Value
from regraft.ir.ops.moved import content_moved
from regraft.ir.ops.movement_rules import data_rule, labels, pinned_rule
from regraft.ir.ops.shapes import normalize_axis, operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MOVEMENT = Trait.PURE | Trait.DATA_MOVEMENT
_HUGE = (1 << 31) - 1  # exporters write INT32_MAX or INT64_MAX for "to the end"
_INT64_MAX = (1 << 63) - 1


# -- slice --------------------------------------------------------------------------------------


def slice_size(size: DimLike, start: DimLike, end: DimLike, step: DimLike) -> DimLike | None:
    """Returns the number of elements that `start:end:step` takes of an axis, None when undecided.

    Minimum and maximum stand in the result only where the bounds of the symbols do not decide.
    """
    if isinstance(step, Dim) or step == 0:
        return None
    if isinstance(size, int) and size < 0:
        return None  # what makes such a value fails
    end = _end(end, step)
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*_python_slice(size, start, end, step).indices(size)))
    if step > 0:
        first, last = _position(start, size, 0, size), _position(end, size, 0, size)
    else:
        high = size - 1
        first = _position(start, size, dim_min(0, high), high)
        last = _position(end, size, -1, high)
    if first is None or last is None:
        return None
    return ceildiv(dim_max(last - first if step > 0 else first - last, 0), abs(step))


def _position(value: DimLike, size: DimLike, low: DimLike, high: DimLike) -> DimLike | None:
    """Returns a slice boundary clamped to [low, high], None when its sign is unknown."""
    if isinstance(value, int):
        if value >= _HUGE:
            return high
        if value <= -_HUGE:
            return low
        if value < 0:
            return dim_max(value + size, low)
        return 0 if value == low else dim_min(value, high)  # no size is negative
    lo, hi = bounds(value)
    if lo is not None and lo >= 0:
        return dim_min(value, high)
    if hi is not None and hi < 0:
        return dim_max(value + size, low)
    return None


def _python_slice(size: int, start: int, end: int, step: int) -> slice:
    # a backward slice that starts before the front takes nothing in Python, the front in ONNX
    return slice(0 if step < 0 and start < -size else start, _end(end, step), step)


def _end(end: Any, step: int) -> Any:
    # ONNX Runtime reads the largest i32 and i64 as "all the way" in both directions
    return -_INT64_MAX if step < 0 and end in (_HUGE, _INT64_MAX) else end


def sliced_axes(node: Node) -> tuple[int, ...] | None:
    """Returns the non-negative axes of a `slice` in order, None when only run time knows them."""
    x = node.inputs[0]
    axes = _ints(node.static("axes"))
    if x is None or x.shape is None:
        return None
    if axes is not None:
        return tuple([normalize_axis(node, axis, len(x.shape)) for axis in axes])
    if node.operand("axes") is not None:
        return None
    for name in ("starts", "ends"):
        static, operand = _sizes(node.static(name)), node.operand(name)
        if static is not None:
            return tuple(range(len(static)))
        if operand is not None and operand.shape and isinstance(operand.shape[0], int):
            return tuple(range(operand.shape[0]))
    return None


def _sizes(static: Any) -> Shape | None:
    return static if static is None or isinstance(static, tuple) else (static,)


def _ints(static: Any) -> tuple[int, ...] | None:
    return _sizes(static)  # type: ignore[return-value]  # axes and bound sizes are no Dims


def _infer_slice(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    shape = x.shape
    if shape is None:
        return TensorType(x.dtype, None)
    axes = sliced_axes(node)
    if axes is None:
        return TensorType(x.dtype, tuple([node.fresh_dim(0, i) for i in range(len(shape))]))
    count = len(axes)
    starts, ends = _sizes(node.static("starts")), _sizes(node.static("ends"))
    steps: Sequence[DimLike] | None = _sizes(node.static("steps"))
    if steps is None:
        steps = (1,) if node.operand("steps") is None else (0,)
        steps = steps * count
    for name, values in (("starts", starts), ("ends", ends), ("steps", steps)):
        if values is not None and len(values) != count:
            raise node.error(f"{len(values)} {name} for {count} axes")
    result = list(shape)
    for i, axis in enumerate(axes):
        size = None
        if starts is not None and ends is not None:
            size = slice_size(result[axis], starts[i], ends[i], steps[i])
        if size is None:
            hi = result[axis]
            size = node.fresh_dim(0, axis, hi=hi if isinstance(hi, int) else None)
        result[axis] = size
    return TensorType(x.dtype, tuple(result))


def _axes_slice(node: Node) -> str | None:
    axes, rank = sliced_axes(node), node.output.rank
    if axes is None or rank is None:
        return None
    return pinned_rule(node, rank, axes)


def _eval_slice(
    c: EvalContext,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first, last = _ints(c.param("starts", starts)), _ints(c.param("ends", ends))
    if first is None or last is None:
        raise ValueError("slice without starts or ends")
    where = _ints(c.param("axes", axes)) or range(len(first))
    by = _ints(c.param("steps", steps)) or (1,) * len(first)
    for axis, start, end, step in zip(where, first, last, by, strict=True):
        index = [slice(None)] * x.ndim
        index[axis] = _python_slice(x.shape[axis], start, end, step)
        x = x[tuple(index)]
    return x


def _content_slice(node: Node) -> Content | None:
    x = node.inputs[0]
    content = None if x is None else x.content
    if not isinstance(content, tuple):
        return content_moved(node)
    starts, ends = _sizes(node.static("starts")), _sizes(node.static("ends"))
    steps = _sizes(node.static("steps")) or (1,)
    if starts is None or ends is None or len(starts) != 1:
        return None
    start, end, step = starts[0], ends[0], steps[0]
    if isinstance(start, Dim) or isinstance(end, Dim) or isinstance(step, Dim):
        return None
    return content[_python_slice(len(content), start, end, step)]


slice_ = OpSpec(
    name="slice",
    source="ONNX Slice-13",
    operands=(
        Operand("x"),
        Operand("starts", optional=True, either=AttrKind.DIMS),
        Operand("ends", optional=True, either=AttrKind.DIMS),
        Operand("axes", optional=True, either=AttrKind.INTS),
        Operand("steps", optional=True, either=AttrKind.INTS),
    ),
    traits=_MOVEMENT,
    axes=_axes_slice,
    infer=_infer_slice,
    content=_content_slice,
    eval=_eval_slice,
)


# -- split --------------------------------------------------------------------------------------


def equal_split(size: DimLike, count: int) -> Shape:
    """Returns the sizes of `count` parts of which only the last may be smaller."""
    if divisor_of(size) % count == 0:
        return (exactdiv(size, count),) * count
    part = ceildiv(size, count)
    return (*(part,) * (count - 1), size - part * (count - 1))


def _infer_split(node: Node) -> list[Type]:
    (x,) = operands_of(node, 1)
    count = len(node.outputs)
    if x.shape is None:
        return [TensorType(x.dtype, None)] * count
    axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    sizes = _sizes(node.static("sizes"))
    if sizes is None:
        if node.inputs[1] is None:
            sizes = equal_split(x.shape[axis], count)
        else:
            hi = x.shape[axis]
            hi = hi if isinstance(hi, int) else None  # type: ignore[assignment]
            sizes = tuple(node.fresh_dim(i, axis, hi=hi) for i in range(count))  # type: ignore[arg-type]
    if len(sizes) != count:
        raise node.error(f"{len(sizes)} sizes for {count} results")
    total: DimLike = 0
    for size in sizes:
        total = size + total
    if isinstance(total, int) and isinstance(x.shape[axis], int) and total != x.shape[axis]:
        raise node.error(f"sizes {list(sizes)} do not fill axis {axis} of size {x.shape[axis]}")
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    return [TensorType(x.dtype, (*before, size, *after)) for size in sizes]


def _axes_split(node: Node) -> str | None:
    rank = None if node.inputs[0] is None else node.inputs[0].rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank
    parts = (labels(rank, (axis,), prefix=f"y{i}_") for i in range(len(node.outputs)))
    return data_rule(node, labels(rank, (axis,)), ", ".join(parts))


def _eval_split(c: EvalContext, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    axis, count = c.attrs["axis"], len(c.node.outputs)
    parts = _ints(c.param("sizes", sizes))
    if parts is None:
        part = -(-x.shape[axis] // count)
        parts = (*(part,) * (count - 1), x.shape[axis] - part * (count - 1))
    return tuple(np.split(x, np.cumsum(parts)[:-1], axis))


def _content_split(node: Node) -> list[Content | None] | None:
    x = node.inputs[0]
    content = None if x is None else x.content
    if not isinstance(content, tuple):
        return None
    result: list[Content | None] = []
    start = 0
    for value in node.outputs:
        size = value.shape[0] if value.shape else None
        if not isinstance(size, int):
            return None
        result.append(content[start : start + size])
        start += size
    return result


split = OpSpec(
    name="split",
    source="ONNX Split-18",
    operands=(Operand("x"), Operand("sizes", optional=True, either=AttrKind.DIMS)),
    results=("parts*",),
    attrs=(Attr("axis", AttrKind.INT, 0),),
    traits=_MOVEMENT,
    axes=_axes_split,
    infer=_infer_split,
    content=_content_split,
    eval=_eval_split,
)


# -- concat -------------------------------------------------------------------------------------


def _infer_concat(node: Node) -> Type:
    values = node.variadic()
    if not values:
        raise node.error("no operands")
    dtype = next((value.dtype for value in values if value.dtype is not None), None)
    shapes = _same_rank(values)
    if not shapes:
        return TensorType(dtype, None)
    rank = len(shapes[0])
    axis = normalize_axis(node, node.attrs["axis"], rank)
    result = list(shapes[0])
    for shape in shapes[1:]:
        if len(shape) != rank:
            raise node.error(f"operands have {rank} and {len(shape)} axes")
        if shape == shapes[0]:
            continue
        for i, dim in enumerate(shape):
            if i != axis and dim != result[i]:
                result[i] = same_size(node, result[i], dim, f"axes {i}")
    if any(value.shape is None for value in values):
        result[axis] = node.fresh_dim(0, axis)
    else:
        total: DimLike = 0
        for shape in shapes:
            total = shape[axis] + total
        result[axis] = total
    return TensorType(dtype, tuple(result))


def _same_rank(values: list[Value]) -> list[Shape]:
    """Returns the known shapes; `[0]`, an empty cache of any rank, adds nothing and is left out."""
    shapes = [value.shape for value in values if value.shape is not None]
    ranks = {len(shape) for shape in shapes}
    return [shape for shape in shapes if shape != (0,)] if len(ranks) > 1 else shapes


def _axes_concat(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank
    parts = (labels(rank, (axis,), prefix=f"x{i}_") for i in range(len(node.inputs)))
    return f"{', '.join(parts)} -> {labels(rank, (axis,), prefix='y')}"


def _content_concat(node: Node) -> Content | None:
    if node.output.rank != 1:
        return None
    parts: list[DimLike] = []
    for value in node.inputs:
        content = None if value is None else value.content
        if not isinstance(content, tuple):
            return None
        parts.extend(content)
    return tuple(parts)


concat = OpSpec(
    name="concat",
    source="ONNX Concat-13",
    operands=(Operand("parts", variadic=True),),
    attrs=(Attr("axis", AttrKind.INT),),
    traits=_MOVEMENT,
    axes=_axes_concat,
    infer=_infer_concat,
    content=_content_concat,
    eval=lambda c, *parts: np.concatenate(
        [part for part in parts if part.shape != (0,) or c.node.output.rank in (1, None)]
        or [*parts],
        c.attrs["axis"],
    ),
)

OPS: tuple[OpSpec, ...] = (slice_, split, concat)
