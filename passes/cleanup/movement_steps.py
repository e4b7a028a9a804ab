"""Which steps of a derived weight a data movement is: the table behind folding parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops import cast, gathering, reshaping, slicing
from regraft.ir.opspec import OpSpec
from regraft.ir.steps import Cast, Concat, Gather, Reshape, Slice, Transpose, Tree, describe
from regraft.ir.types import static_shape
from regraft.passes.cleanup.facts import static_ints

Steps = Callable[[Node, Sequence[Tree]], "list[Tree] | None"]


def _reshape(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    shape = static_shape(node.outputs[0].type)
    return None if shape is None else [Reshape(xs[0], shape)]


def _transpose(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    perm = node.attrs["perm"]
    if perm is None:
        perm = tuple(reversed(range(len(describe(xs[0])[1]))))
    return [Transpose(xs[0], perm)]


def _slice(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    axes = slicing.sliced_axes(node)
    starts, ends = static_ints(node.attrs["starts"]), static_ints(node.attrs["ends"])
    if axes is None or starts is None or ends is None or node.inputs[4] is not None:
        return None
    tree = xs[0]
    for axis, start, end, step in zip(
        axes, starts, ends, node.attrs["steps"] or (1,) * len(axes), strict=True
    ):
        if step < 1:
            return None
        first, last, _ = slice(start, end, step).indices(describe(tree)[1][axis])
        tree = Slice(tree, axis, first, max(first, last), step)
    return [tree]


def _split(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    axis = node.attrs["axis"] % len(describe(xs[0])[1])
    parts: list[Tree] = []
    start = 0
    for value in node.outputs:
        shape = static_shape(value.type)
        if shape is None:
            return None
        parts.append(Slice(xs[0], axis, start, start + shape[axis]))
        start += shape[axis]
    return parts


def _concat(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    if len(xs) != len(node.inputs):
        return None  # some operands are literals, which have no origin
    rank = len(describe(xs[0])[1])
    if any(len(describe(x)[1]) != rank for x in xs):
        return None
    return [Concat(tuple(xs), node.attrs["axis"] % rank)]


def _gather(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    if len(xs) != 1 or node.inputs[0] is None or node.inputs[0].producer is None:
        return None
    indices = constant_of(node.inputs[1])
    shape, result = describe(xs[0])[1], static_shape(node.outputs[0].type)
    if indices is None or result is None or not shape:
        return None
    axis = node.attrs["axis"] % len(shape)
    size, flat = shape[axis], [int(i) for i in indices.reshape(-1)]
    if not all(-size <= i < size for i in flat):
        return None  # it fails where it runs
    order = tuple(i % size for i in flat)
    if indices.ndim == 1:
        return [Gather(xs[0], axis, order)]
    if indices.ndim == 0:
        return [Reshape(Gather(xs[0], axis, order), result)]
    return None


def _cast(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    # other casts saturate or wrap as ONNX says, not as numpy does: folded by value
    source, to = describe(xs[0])[0], node.attrs["to"]
    return [Cast(xs[0], to)] if source.is_float and to.is_float and to.bits >= 16 else None


_STEPS: dict[OpSpec, Steps] = {
    reshaping.reshape: _reshape,
    reshaping.squeeze: _reshape,
    reshaping.unsqueeze: _reshape,
    reshaping.transpose: _transpose,
    slicing.slice_: _slice,
    slicing.split: _split,
    slicing.concat: _concat,
    gathering.gather: _gather,
    cast.cast: _cast,
}
STEP_OPS = frozenset(_STEPS)


def steps_of(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    """Returns one tree per result of a data movement of weights, None where no step says it.

    Args:
        node: A node whose operator is in `STEP_OPS` and whose operands are constants.
        xs: Trees of its operands that are weights, in order.
    """
    return _STEPS[node.op](node, xs)
