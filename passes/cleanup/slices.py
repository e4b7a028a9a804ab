"""Parts and unions: slices of everything, slices of slices, concats of concats, splits undone."""

from __future__ import annotations

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import repeating, reshaping, slicing
from regraft.ir.rewrite import Rewriter, RuleSet, local_rule
from regraft.passes.cleanup.facts import made_by, same_type, static_ints

slice_, split, concat = slicing.slice_, slicing.split, slicing.concat

_END = (1 << 31) - 1


@local_rule(slice_)
def slice_everything(node: Node, rw: Rewriter) -> bool:
    """slice(x, all of it) -> x: steps forward by 1 and leaves every size as it is."""
    x = node.inputs[0]
    if x is None or not same_type(x, node.outputs[0]) or not _steps_are_one(node):
        return False
    rw.replace(node, x)
    return True


@local_rule(slice_)
def slice_by_one(node: Node, rw: Rewriter) -> bool:
    """slice(x) by steps of 1 -> without steps: one spelling of the same."""
    if node.attrs["steps"] is None or not _steps_are_one(node):
        return False
    rw.update(node, attrs={"steps": None})
    return True


def _steps_are_one(node: Node) -> bool:
    steps = node.attrs["steps"]
    return node.inputs[4] is None and (steps is None or all(step == 1 for step in steps))


def _ranges(node: Node) -> dict[int, tuple[int, int]] | None:
    """Returns start and end by axis of a slice by 1 with static, in-range, positive bounds."""
    axes, x = slicing.sliced_axes(node), node.inputs[0]
    starts, ends = static_ints(node.attrs["starts"]), static_ints(node.attrs["ends"])
    if axes is None or x is None or x.shape is None or starts is None or ends is None:
        return None
    if not _steps_are_one(node) or len(set(axes)) < len(axes):
        return None
    result = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        size = x.shape[axis]
        bounds = _bounds(start, end, size)
        if bounds is None:
            return None
        result[axis] = bounds
    return result


def _bounds(start: int, end: int, size: DimLike) -> tuple[int, int] | None:
    if isinstance(size, int):
        first, last, _ = slice(start, end).indices(size)
        return first, max(first, last)
    # of an unknown size only "from here to the end" is sure: [2:][3:] is [5:]
    return (start, _END) if start >= 0 and end >= _END else None


@local_rule(slice_)
def slice_of_slice(node: Node, rw: Rewriter) -> bool:
    """x[a:b][c:d] -> x[a + c : min(a + d, b)]."""
    inner = made_by(node.inputs[0], slice_)
    if inner is None or inner.inputs[0] is None:
        return False
    first, second = _ranges(inner), _ranges(node)
    if first is None or second is None:
        return False
    merged = dict(first)
    for axis, (start, end) in second.items():
        low, high = first.get(axis, (0, _END))
        merged[axis] = (low + start, min(low + end, high))
    axes = tuple(sorted(merged))
    made = rw.builder(node).op(
        slice_,
        inner.inputs[0],
        starts=tuple([merged[axis][0] for axis in axes]),
        ends=tuple([merged[axis][1] for axis in axes]),
        axes=axes,
    )
    rw.replace(node, made)
    return True


@local_rule(concat)
def concat_of_concat(node: Node, rw: Rewriter) -> bool:
    """concat(concat(x, y), z) along one axis -> concat(x, y, z)."""
    rank, axis = node.outputs[0].rank, node.attrs["axis"]
    if rank is None:
        return False
    parts: list[Value | None] = []
    for value in node.inputs:
        inner = made_by(value, concat)
        if (
            inner is not None
            and value is not None
            and value.num_uses == 1
            and (inner.attrs["axis"] - axis) % rank == 0
        ):
            parts.extend(inner.inputs)
        else:
            parts.append(value)
    if len(parts) == len(node.inputs):
        return False
    rw.replace(node, rw.builder(node).op(concat, *parts, axis=axis))
    return True


@local_rule(concat)
def concat_of_one(node: Node, rw: Rewriter) -> bool:
    """concat(x) -> x; parts of size 0 along the axis are left out first."""
    out, axis = node.outputs[0], node.attrs["axis"]
    parts = [value for value in node.inputs if value is not None and not _is_empty(value, axis)]
    if len(parts) == 1 and same_type(parts[0], out):
        rw.replace(node, parts[0])
        return True
    if not parts or len(parts) == len(node.inputs):
        return False
    rw.replace(node, rw.builder(node).op(concat, *parts, axis=axis))
    return True


def _is_empty(value: Value, axis: int) -> bool:
    shape = value.shape
    return shape is not None and -len(shape) <= axis < len(shape) and shape[axis] == 0


@local_rule(concat)
def concat_of_split(node: Node, rw: Rewriter) -> bool:
    """concat(split(x)) in order along one axis -> x."""
    first = node.inputs[0]
    source = None if first is None else first.producer
    if source is None or source.op is not split or len(source.outputs) != len(node.inputs):
        return False
    x, rank = source.inputs[0], node.outputs[0].rank
    if x is None or rank is None or (source.attrs["axis"] - node.attrs["axis"]) % rank:
        return False
    if any(a is not b for a, b in zip(node.inputs, source.outputs, strict=True)):
        return False
    if not same_type(x, node.outputs[0]):
        return False
    rw.replace(node, x)
    return True


@local_rule(concat)
def concat_of_repeats(node: Node, rw: Rewriter) -> bool:
    """concat(x[0:1], x[0:1], x[1:2], x[1:2]) -> x, every entry repeated."""
    rank = node.outputs[0].rank
    slices = [made_by(value, slice_) for value in node.inputs]
    x = None if slices[0] is None else slices[0].inputs[0]
    if rank is None or x is None or x.shape is None or node.outputs[0].shape is None:
        return False
    axis = node.attrs["axis"] % rank
    starts = []
    for part in slices:
        ranges = None if part is None or part.inputs[0] is not x else _ranges(part)
        if ranges is None or list(ranges) != [axis] or ranges[axis][1] - ranges[axis][0] != 1:
            return False
        starts.append(ranges[axis][0])
    size = x.shape[axis]
    if not isinstance(size, int) or size == 0 or len(starts) % size:
        return False
    times = len(starts) // size
    if times < 2 or starts != [i for i in range(size) for _ in range(times)]:
        return False
    lead, rest = x.shape[: axis + 1], x.shape[axis + 1 :]
    b = rw.builder(node)
    made = b.op(reshaping.reshape, x, shape=(*lead, 1, *rest))
    made = b.op(repeating.expand, made, shape=(*lead, times, *rest))
    rw.replace(node, b.op(reshaping.reshape, made, shape=node.outputs[0].shape))
    return True


@local_rule(split)
def split_into_one(node: Node, rw: Rewriter) -> bool:
    """split(x) into one part -> x."""
    x = node.inputs[0]
    if len(node.outputs) != 1 or x is None or not same_type(x, node.outputs[0]):
        return False
    rw.replace(node, x)
    return True


RULES = RuleSet(
    slice_by_one, slice_everything, slice_of_slice, concat_of_one, concat_of_concat,
    concat_of_split, concat_of_repeats, split_into_one,
)  # fmt: skip
