"""Transposes: chains, transposes that move only axes of size 1, and sinking toward cancellation.

Sinking moves a transpose below the one node that uses it. Through element-wise operators it costs
nothing and never duplicates work, so it is done always; through operators with an axis (reductions,
softmax, concat) only where the moved transpose goes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import cast, reduce, reshaping, slicing, softmax
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import LocalRule, Rewriter, RuleSet, local_rule
from regraft.passes.cleanup.facts import (
    is_broadcasting,
    made_by,
    only_used_by,
    static_shape_of,
)

Perm = tuple[int, ...]

transpose = reshaping.transpose


@local_rule(transpose)
def transpose_explicit(node: Node, rw: Rewriter) -> bool:
    """transpose(x) without perm -> the axes reversed, once the rank is known."""
    rank = node.outputs[0].rank
    if node.attrs["perm"] is not None or rank is None:
        return False
    rw.update(node, attrs={"perm": tuple(reversed(range(rank)))})
    return True


@local_rule(transpose)
def transpose_of_transpose(node: Node, rw: Rewriter) -> bool:
    """transpose(transpose(x, p), q) -> transpose(x, p[q])."""
    perm, inner = node.attrs["perm"], made_by(node.inputs[0], transpose)
    if perm is None or inner is None or inner.attrs["perm"] is None:
        return False
    x = inner.inputs[0]
    if x is None:
        return False
    first = inner.attrs["perm"]
    rw.replace(node, _transposed(node, rw, x, tuple([first[i] for i in perm])))
    return True


@local_rule(transpose)
def transpose_nothing(node: Node, rw: Rewriter) -> bool:
    """transpose(x, (0, 1, 2)) -> x."""
    perm, x = node.attrs["perm"], node.inputs[0]
    if perm is None or x is None or not _is_identity(perm):
        return False
    rw.replace(node, x)
    return True


@local_rule(transpose)
def transpose_as_reshape(node: Node, rw: Rewriter) -> bool:
    """Transpose that moves only axes of size 1 -> reshape."""
    x, perm, out = node.inputs[0], node.attrs["perm"], node.outputs[0].shape
    if x is None or x.shape is None or perm is None or out is None:
        return False
    if not moves_only_ones(perm, x.shape):
        return False
    rw.replace(node, rw.builder(node).op(reshaping.reshape, x, shape=out))
    return True


def moves_only_ones(perm: Perm, shape: Sequence[object]) -> bool:
    """Returns whether the axes of a size other than 1 keep their order."""
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept == sorted(kept)


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


def _transposed(node: Node, rw: Rewriter, x: Value, perm: Perm) -> Value:
    if _is_identity(perm):
        return x
    return rw.builder(node).op(transpose, x, perm=perm)


def _inverse(perm: Perm) -> Perm:
    return tuple([perm.index(i) for i in range(len(perm))])


# -- sinking ------------------------------------------------------------------------------------


def _sinks(op: OpSpec) -> bool:
    return op is not cast.identity and is_broadcasting(op)


def _sink_through_elementwise(node: Node, rw: Rewriter) -> bool:
    """f(transpose(x), …) -> transpose(f(x, …)) where the other operands follow for free."""
    perm: Perm | None = None
    for value in node.inputs:
        inner = made_by(value, transpose)
        if inner is not None and value is not None and inner.attrs["perm"] is not None:
            if only_used_by(value, node):
                perm = inner.attrs["perm"]
            break
    if perm is None or node.outputs[0].rank != len(perm):
        return False
    operands = [_before(value, perm, node) for value in node.inputs]
    if any(ready is None for ready in operands):
        return False
    b = rw.builder(node)
    values: list[Value | None] = []
    for value, ready in zip(node.inputs, operands, strict=True):
        if isinstance(ready, tuple) and value is not None:
            values.append(b.op(reshaping.reshape, value, shape=ready))
        else:
            values.append(ready if isinstance(ready, Value) else None)
    made = b.op(node.op, *values, **node.attrs)
    rw.replace(node, b.op(transpose, made, perm=perm))
    return True


_ABSENT = ()


def _before(value: Value | None, perm: Perm, node: Node) -> Value | tuple[int, ...] | None:
    """Returns what stands for an operand before the transpose, None when it would cost work.

    A value; or the sizes that a constant takes, whose axes of a size other than 1 keep their order.
    """
    if value is None:
        return _ABSENT
    inner = made_by(value, transpose)
    if inner is not None and inner.attrs["perm"] == perm and only_used_by(value, node):
        return inner.inputs[0]
    shape = static_shape_of(value.type)
    if shape is None or not is_constant(value):
        return None
    if all(size == 1 for size in shape) and len(shape) <= len(perm):
        return value
    full = (1,) * (len(perm) - len(shape)) + shape
    inverse = _inverse(perm)
    return tuple([full[i] for i in inverse]) if moves_only_ones(inverse, full) else None


sink_through_elementwise = LocalRule("sink-through-elementwise", _sinks, _sink_through_elementwise)


def _goes_away(out: Value, perm: Perm, shape: Sequence[object] | None) -> bool:
    """Returns whether a transpose of `out` by `perm` cancels, is none, or is a reshape."""
    if _is_identity(perm) or (shape is not None and moves_only_ones(perm, shape)):
        return True
    users = out.users
    return len(users) == out.num_uses and all(
        user.op is transpose
        and user.attrs["perm"] is not None
        and _is_identity(tuple([perm[i] for i in user.attrs["perm"]]))
        for user in users
    )


_REDUCTIONS = tuple(op for op in reduce.OPS if op.name.startswith("reduce_"))


@local_rule(*_REDUCTIONS)
def sink_through_reduction(node: Node, rw: Rewriter) -> bool:
    """reduce(transpose(x)) -> transpose(reduce(x)) where that transpose goes away."""
    inner = made_by(node.inputs[0], transpose)
    axes = node.attrs["axes"]
    if inner is None or axes is None or node.inputs[1] is not None:
        return False
    perm, x, out = inner.attrs["perm"], inner.inputs[0], node.outputs[0]
    if perm is None or x is None or x.shape is None or not only_used_by(inner.outputs[0], node):
        return False
    reduced = {perm[axis] for axis in axes}
    if node.attrs["keepdims"]:
        after, shape = perm, [1 if i in reduced else dim for i, dim in enumerate(x.shape)]
    else:
        kept = [axis for axis in range(len(perm)) if axis not in reduced]
        after = tuple([kept.index(axis) for axis in perm if axis not in reduced])
        shape = [x.shape[axis] for axis in kept]
    if not _goes_away(out, after, shape):
        return False
    attrs = {**node.attrs, "axes": tuple(sorted(reduced))}
    made = rw.builder(node).op(node.op, x, **attrs)
    rw.replace(node, _transposed(node, rw, made, after))
    return True


@local_rule(softmax.softmax, softmax.log_softmax, softmax.hardmax)
def sink_through_softmax(node: Node, rw: Rewriter) -> bool:
    """softmax(transpose(x)) -> transpose(softmax(x)) where that transpose cancels."""
    inner = made_by(node.inputs[0], transpose)
    if inner is None or inner.inputs[0] is None or inner.attrs["perm"] is None:
        return False
    perm, out = inner.attrs["perm"], node.outputs[0]
    if not only_used_by(inner.outputs[0], node) or not _goes_away(out, perm, None):
        return False
    attrs = {**node.attrs, "axis": perm[node.attrs["axis"]]}
    made = rw.builder(node).op(node.op, inner.inputs[0], **attrs)
    rw.replace(node, rw.builder(node).op(transpose, made, perm=perm))
    return True


@local_rule(slicing.concat)
def sink_through_concat(node: Node, rw: Rewriter) -> bool:
    """concat(transpose(x), transpose(y)) -> transpose(concat(x, y)): one transpose for many."""
    first = made_by(node.inputs[0], transpose)
    if first is None or first.attrs["perm"] is None or len(node.inputs) < 2:
        return False
    perm = first.attrs["perm"]
    parts: list[Value] = []
    for value in node.inputs:
        inner = made_by(value, transpose)
        if value is None or inner is None or inner.attrs["perm"] != perm:
            return False
        if inner.inputs[0] is None or not only_used_by(value, node):
            return False
        parts.append(inner.inputs[0])
    b = rw.builder(node)
    made = b.op(slicing.concat, *parts, axis=perm[node.attrs["axis"]])
    rw.replace(node, b.op(transpose, made, perm=perm))
    return True


RULES = RuleSet(
    transpose_explicit,
    transpose_nothing,
    transpose_of_transpose,
    transpose_as_reshape,
    sink_through_elementwise,
    sink_through_reduction,
    sink_through_softmax,
    sink_through_concat,
)
