"""Ties of data movement that a rule of labels cannot state: parts of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.ir.constants import literal, weight
from regraft.ir.dims import exact_quotient
from regraft.ir.graph import Node, Value
from regraft.ir.ops.fill import constant_of_shape
from regraft.ir.ops.gathering import gather, gather_nd
from regraft.ir.ops.repeating import pad, tile
from regraft.ir.ops.shapes import normalize_axis
from regraft.ir.ops.sizes import shape as shape_op
from regraft.ir.ops.slicing import concat, slice_, sliced_axes, split
from regraft.ir.opspec import OpSpec
from regraft.passes.analysis.coupling.picking import tie_gather, tie_pad, tie_tile
from regraft.passes.analysis.coupling.spaces import (
    Pin,
    Space,
    pin,
    product_of,
    sum_of,
    unify,
)

if TYPE_CHECKING:
    from regraft.passes.analysis.coupling.builder import Builder

_BREAKS = "the parts cut through blocks"


def _why(node: Node, axis: int, reason: str) -> Pin:
    name = next((value.name for value in node.outputs if value.name), "")
    return Pin(node.op.name, name or "", f"axis {axis}", reason)


def _tie_others(builder: Builder, node: Node, values: Sequence[Value], axis: int) -> None:
    first = builder.spaces_of(values[0])
    for value in values[1:]:
        for i, (a, b) in enumerate(zip(first, builder.spaces_of(value), strict=True)):
            if i != axis:
                unify(a, b, _why(node, i, "sizes differ"))


def _constant(builder: Builder, node: Node) -> bool:
    builder.spaces_of(node.output)
    return True


def _concat(builder: Builder, node: Node) -> bool:
    rank = node.output.rank
    parts = [value for value in node.inputs if value is not None]
    if rank is None or any(value.rank is None for value in parts):
        return False
    parts = [value for value in parts if value.rank == rank]  # `[0]` adds nothing to any rank
    axis = normalize_axis(node, node.attrs["axis"], rank)
    _tie_others(builder, node, [node.output, *parts], axis)
    whole = builder.spaces_of(node.output)[axis]
    pieces = [builder.spaces_of(value)[axis] for value in parts]
    unify(whole, sum_of(pieces), _why(node, axis, _BREAKS))
    return True


def _split(builder: Builder, node: Node) -> bool:
    x = node.inputs[0]
    if x is None or x.rank is None or any(value.rank is None for value in node.outputs):
        return False
    axis = normalize_axis(node, node.attrs["axis"], x.rank)
    _tie_others(builder, node, [x, *node.outputs], axis)
    pieces = [builder.spaces_of(value)[axis] for value in node.outputs]
    why = _why(node, axis, _BREAKS)
    unify(builder.spaces_of(x)[axis], sum_of(pieces), why)
    if node.inputs[1] is not None:  # sizes that the run computes cannot be rewritten
        for piece in pieces:
            pin(piece, _why(node, axis, "its sizes are an operand"))
    return True


def _slice(builder: Builder, node: Node) -> bool:
    x = node.inputs[0]
    axes = sliced_axes(node)
    if x is None or x.shape is None or node.output.shape is None or axes is None:
        return False
    starts, ends, steps = (node.static(name) for name in ("starts", "ends", "steps"))
    source, result = builder.spaces_of(x), builder.spaces_of(node.output)
    for i, (a, b) in enumerate(zip(source, result, strict=True)):
        if i not in axes:
            unify(a, b, _why(node, i, "sizes differ"))
    builder.parts[node] = []
    for idx, axis in enumerate(axes):
        step = 1 if steps is None else _at(steps, idx)
        start, end = _at(starts, idx), _at(ends, idx)
        _slice_axis(builder, node, axis, (start, end, step), (source[axis], result[axis]))
    return True


def _at(values: Any, idx: int) -> Any:
    return values[idx] if isinstance(values, tuple) else values


def _slice_axis(
    builder: Builder, node: Node, axis: int, bounds: tuple[Any, Any, Any], ends: tuple[Space, Space]
) -> None:
    source, result = ends
    size = source.size
    is_static = all(isinstance(bound, int) for bound in bounds)
    if (
        not isinstance(size, int)
        or not is_static
        or bounds[2] < 1
        or node.attrs["starts"] is None
        or node.attrs["ends"] is None
    ):
        if source.size == result.size and bounds[0] == 0 and bounds[2] == 1:
            unify(source, result, _why(node, axis, _BREAKS))
        for space in ends:
            pin(space, _why(node, axis, "its bounds are known at run time only, or run backwards"))
        return
    taken = range(size)[slice(*bounds)]
    why = _why(node, axis, _BREAKS)
    if bounds[2] == 1:
        before = Space(taken.start)
        after = Space(size - taken.stop)
        unify(source, sum_of([before, result, after]), why)
        builder.parts[node].append((axis, before, result))
        return
    outer = exact_quotient(size, bounds[2])
    if outer is None or len(taken) != outer:
        pin(source, why)
        pin(result, why)
        return
    inner = Space(bounds[2], _why(node, axis, "it takes one position of every block"))
    unify(source, product_of([result, inner]), why)
    # the bounds reach the end and the step stays, so that they hold for any number of blocks
    builder.parts[node].append((axis, Space(taken.start % bounds[2]), source))


def _shape(builder: Builder, node: Node) -> bool:
    """Sizes that only gathers of symbolic axes read tie nothing; others pin their axis."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return False
    content = node.output.content
    builder.spaces_of(node.output)
    if not isinstance(content, tuple):
        return False
    first = node.attrs.get("start", 0) or 0
    first += len(x.shape) if first < 0 else 0
    spaces = builder.spaces_of(x)
    for i, size in enumerate(content):
        if isinstance(size, int) and size != 1 and not _is_unread(node, i):
            pin(spaces[first + i], _why(node, first + i, "its size is read as a number"))
    return True


def _is_unread(node: Node, position: int) -> bool:
    """Returns whether all users of sizes gather other ones."""
    for user in node.output.users:
        indices = user.inputs[1].content if user.op.name == "gather" and user.inputs[1] else None
        if indices is None:
            return False
        wanted = indices if isinstance(indices, tuple) else (indices,)
        count = len(node.output.content)  # type: ignore[arg-type]  # the caller saw a tuple
        if any(not isinstance(i, int) or i % count == position for i in wanted):
            return False
    return not node.output.is_output


def _filled(builder: Builder, node: Node) -> bool:
    """One element everywhere: any size will do, when the attribute states it."""
    builder.spaces_of(node.output)
    return node.attrs["shape"] is not None


Move = Callable[["Builder", Node], bool]

MOVES: Mapping[OpSpec, Move] = {
    literal: _constant,
    weight: _constant,
    concat: _concat,
    split: _split,
    slice_: _slice,
    shape_op: _shape,
    constant_of_shape: _filled,
    gather: tie_gather,
    gather_nd: tie_gather,
    tile: tie_tile,
    pad: tie_pad,
}
"""How operators tie their axes beyond a rule; False falls back on the rule."""
