"""Which steps of a derived weight an operator is: the table behind folding parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regraft.ir.constants import constant_of, weight
from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    functions,
    gathering,
    linalg,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.opspec import OpSpec
from regraft.ir.steps import (
    Add,
    Cast,
    Concat,
    Div,
    Gather,
    Literal,
    MatMul,
    Mul,
    Reshape,
    Slice,
    Sqrt,
    Transpose,
    Tree,
    describe,
)
from regraft.ir.types import static_shape
from regraft.ir.weights import Role
from regraft.passes.cleanup.facts import static_ints

Steps = Callable[[Node, Tree], "list[Tree] | None"]
JointSteps = Callable[[Node, Sequence[Tree]], "list[Tree] | None"]

_MAX_LITERAL_BYTES = 1 << 16


def _reshape(node: Node, x: Tree) -> list[Tree] | None:
    shape = static_shape(node.outputs[0].type)
    return None if shape is None else [Reshape(x, shape)]


def _transpose(node: Node, x: Tree) -> list[Tree] | None:
    perm = node.attrs["perm"]
    if perm is None:
        perm = tuple(reversed(range(len(describe(x)[1]))))
    return [Transpose(x, perm)]


def _slice(node: Node, x: Tree) -> list[Tree] | None:
    axes = slicing.sliced_axes(node)
    starts, ends = static_ints(node.attrs["starts"]), static_ints(node.attrs["ends"])
    if axes is None or starts is None or ends is None or node.inputs[4] is not None:
        return None
    tree = x
    for axis, start, end, step in zip(
        axes, starts, ends, node.attrs["steps"] or (1,) * len(axes), strict=True
    ):
        if step < 1:
            return None
        first, last, _ = slice(start, end, step).indices(describe(tree)[1][axis])
        tree = Slice(tree, axis, first, max(first, last), step)
    return [tree]


def _split(node: Node, x: Tree) -> list[Tree] | None:
    axis = node.attrs["axis"] % len(describe(x)[1])
    parts: list[Tree] = []
    start = 0
    for value in node.outputs:
        shape = static_shape(value.type)
        if shape is None:
            return None
        parts.append(Slice(x, axis, start, start + shape[axis]))
        start += shape[axis]
    return parts


def _gather(node: Node, x: Tree) -> list[Tree] | None:
    indices = constant_of(node.inputs[1])
    shape, result = describe(x)[1], static_shape(node.outputs[0].type)
    if indices is None or result is None or not shape:
        return None
    axis = node.attrs["axis"] % len(shape)
    size, flat = shape[axis], [int(i) for i in indices.reshape(-1)]
    if not all(-size <= i < size for i in flat):
        return None  # it fails where it runs
    order = tuple(i % size for i in flat)
    taken = Gather(x, axis, order)
    return [taken if indices.ndim == 1 else Reshape(taken, result)]


def _expand(node: Node, x: Tree) -> list[Tree] | None:
    result = static_shape(node.outputs[0].type)
    if result is None or 0 in result:
        return None
    shape = (1,) * (len(result) - len(describe(x)[1])) + describe(x)[1]
    tree = x if shape == describe(x)[1] else Reshape(x, shape)
    for axis, (before, after) in enumerate(zip(shape, result, strict=True)):
        if before != after:
            tree = Gather(tree, axis, (0,) * after)
    return [tree]


def _cast(node: Node, x: Tree) -> list[Tree] | None:
    # other casts saturate or wrap as ONNX says, not as numpy does: folded by value
    source, to = describe(x)[0], node.attrs["to"]
    return [Cast(x, to)] if source.is_float and to.is_float and to.bits >= 16 else None


def _sqrt(node: Node, x: Tree) -> list[Tree] | None:
    return [Sqrt(x)]


def _neg(node: Node, x: Tree) -> list[Tree] | None:
    return [Mul(x, _number(-1.0, x))]


def _concat(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    return [Concat(tuple(xs), node.attrs["axis"] % len(describe(xs[0])[1]))]


def _sub(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    a, b = xs
    return [Add(a, Mul(b, _number(-1.0, b)))]  # a - b is a + (-b) in every bit


def _binary(step: type[Mul | Add | Div | MatMul]) -> JointSteps:
    return lambda _, xs: [step(*xs)]


def _matmul(node: Node, xs: Sequence[Tree]) -> list[Tree] | None:
    is_matrix = all(len(describe(x)[1]) >= 2 for x in xs)
    return [MatMul(*xs)] if is_matrix else None


def _number(number: float, like: Tree) -> Literal:
    return Literal.of(np.array(number, describe(like)[0].numpy))


_STEPS: dict[OpSpec, Steps] = {
    reshaping.reshape: _reshape,
    reshaping.squeeze: _reshape,
    reshaping.unsqueeze: _reshape,
    reshaping.transpose: _transpose,
    slicing.slice_: _slice,
    slicing.split: _split,
    gathering.gather: _gather,
    repeating.expand: _expand,
    cast.cast: _cast,
    arithmetic.neg: _neg,
    functions.sqrt: _sqrt,
}
"""Operators of one tensor; what else they take are numbers that say how."""

_JOINT_STEPS: dict[OpSpec, JointSteps] = {
    slicing.concat: _concat,
    arithmetic.add: _binary(Add),
    arithmetic.sub: _sub,
    arithmetic.mul: _binary(Mul),
    arithmetic.div: _binary(Div),
    linalg.matmul: _matmul,
}
"""Operators of several tensors."""

STEP_OPS = frozenset((*_STEPS, *_JOINT_STEPS))


def steps_of(node: Node) -> list[Tree] | None:
    """Returns one tree per result of an operator of weights, None where no step says it.

    Args:
        node: A node whose operator is in `STEP_OPS` and whose operands are constants.
    """
    single = _STEPS.get(node.op)
    if single is not None:
        x = tree_of(node.inputs[0])
        return None if x is None else single(node, x)
    xs = [tree_of(value) for value in node.inputs]
    given = [x for x in xs if x is not None]
    return _JOINT_STEPS[node.op](node, given) if len(given) == len(xs) else None


def tree_of(value: Value | None) -> Tree | None:
    """Returns the steps of a float constant, None for a large literal and for other types."""
    producer = None if value is None else value.producer
    if value is None or producer is None or value.dtype is None or not value.dtype.is_float:
        return None
    if producer.op is weight and producer.graph is not None:
        store = producer.graph.scope.weights
        name = store.resolve(producer.attrs["name"])
        return derive(name, store[name])
    array = constant_of(value, _MAX_LITERAL_BYTES)
    return None if array is None else Literal.of(array)


_MOVES = frozenset(
    {reshaping.reshape, reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze,
     cast.identity, slicing.split}
)  # fmt: skip


def is_rearrangement(node: Node) -> bool:
    """Returns whether a node of parameters only rearranges whole ones, with its siblings.

    A generated PyTorch module then holds the parameters themselves.
    """
    if node.op in _MOVES:
        return True
    if node.op is slicing.slice_:
        return _is_covered(node)
    return node.op is slicing.concat and all(map(_is_param, node.inputs))


def _is_param(value: Value | None) -> bool:
    producer = None if value is None else value.producer
    if producer is None or producer.op is not weight or producer.graph is None:
        return False
    return producer.graph.scope.weights.role(producer.attrs["name"]) is Role.PARAM


def _is_covered(node: Node) -> bool:
    """Returns whether the slices of a parameter along one axis take every position together."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer
    if producer is None or producer.op is not weight or producer.graph is None:
        return False
    store = producer.graph.scope.weights
    name = store.resolve(producer.attrs["name"])
    whole = derive(name, store[name])
    trees = [] if node.op not in STEP_OPS else steps_of(node) or []
    own = trees[0] if trees else None
    if not isinstance(own, Slice) or (own.x is not whole and own.x != whole):
        return False
    ranges = [(own.start, own.stop, own.step)]
    for other in producer.output.users:
        found = steps_of(other) if other.op is slicing.slice_ else None
        tree = found[0] if found else None
        if isinstance(tree, Slice) and tree.x == whole and tree.axis == own.axis:
            ranges.append((tree.start, tree.stop, tree.step))
    for other_name in store:
        held = store[other_name]
        tree = derive(other_name, held) if isinstance(held, DerivedWeight) else None
        if isinstance(tree, Slice) and tree.x == whole and tree.axis == own.axis:
            ranges.append((tree.start, tree.stop, tree.step))
    reached = 0
    for start, stop, step in sorted(ranges):
        if start > reached or step != 1:
            break
        reached = max(reached, stop)
    return reached == describe(whole)[1][own.axis]
