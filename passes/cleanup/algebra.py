"""Identities of arithmetic: exact in real arithmetic, the result type unchanged.

A float times zero is not zero for infinities and NaN, so it stays. Adding 0 to -0.0 gives 0.0: the
two are equal numbers. A power of 0.5 is Inf for -Inf and 0.0 for -0.0, where a root is NaN and
-0.0: it becomes one only where the sign is proven.
"""

from __future__ import annotations

import numpy as np

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, functions, linalg, logical
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import Reject, Rewriter, RuleSet, local_rule
from regraft.passes.analysis.signs import Sign, sign_of
from regraft.passes.cleanup.facts import made_by, other_operand, same_type, uniform


def _forward(node: Node, rw: Rewriter, value: Value | None) -> bool:
    """Replaces the node by a value of the very same type."""
    if value is None or not same_type(value, node.outputs[0]):
        return False
    rw.replace(node, value)
    return True


@local_rule(arithmetic.add, logical.bitwise_or, logical.bitwise_xor)
def add_zero(node: Node, rw: Rewriter) -> bool:
    """`x + 0 -> x`, `x | 0 -> x`, `x ^ 0 -> x`."""
    return _forward(node, rw, other_operand(node, 0.0))


@local_rule(arithmetic.sub)
def subtract_zero(node: Node, rw: Rewriter) -> bool:
    """`x - 0 -> x`."""
    return uniform(node.inputs[1]) == 0.0 and _forward(node, rw, node.inputs[0])


@local_rule(arithmetic.mul)
def multiply_by_one(node: Node, rw: Rewriter) -> bool:
    """`x * 1 -> x`."""
    return _forward(node, rw, other_operand(node, 1.0))


@local_rule(arithmetic.mul)
def multiply_by_zero(node: Node, rw: Rewriter) -> bool:
    """`x * 0 -> 0` for integers."""
    out = node.outputs[0]
    if out.dtype is None or not out.dtype.is_integer:
        return False
    for value in node.inputs:
        if value is not None and uniform(value) == 0.0 and same_type(value, out):
            return _forward(node, rw, value)
    return False


@local_rule(arithmetic.div)
def divide_by_one(node: Node, rw: Rewriter) -> bool:
    """`x / 1 -> x`."""
    return uniform(node.inputs[1]) == 1.0 and _forward(node, rw, node.inputs[0])


@local_rule(arithmetic.pow_)
def simple_power(node: Node, rw: Rewriter) -> bool | Reject:
    """`x ** 1 -> x`, `x ** 2 -> x * x`, `x ** 0.5 -> sqrt(x)` for floats not below 0."""
    x, out = node.inputs[0], node.outputs[0]
    exponent = uniform(node.inputs[1])
    if exponent is None or x is None or not same_type(x, out):
        return False
    if exponent == 1.0:
        rw.replace(node, x)
    elif exponent == 2.0:
        rw.replace(node, rw.builder(node).op(arithmetic.mul, x, x))
    elif exponent == 0.5 and out.dtype is not None and out.dtype.is_float:
        if sign_of(x) is not Sign.PLUS:
            return Reject("its operand may be -0.0 or -Inf, where a root differs", x)
        rw.replace(node, rw.builder(node).op(functions.sqrt, x))
    else:
        return False
    return True


_INVOLUTIONS = (arithmetic.neg, logical.logical_not, logical.bitwise_not)
_IDEMPOTENT = (activation.relu, arithmetic.abs_)


@local_rule(*_INVOLUTIONS)
def involution(node: Node, rw: Rewriter) -> bool:
    """-(-x) -> x, not not x -> x."""
    inner = made_by(node.inputs[0], node.op)
    return inner is not None and _forward(node, rw, inner.inputs[0])


@local_rule(*_IDEMPOTENT)
def idempotent(node: Node, rw: Rewriter) -> bool:
    """relu(relu(x)) -> relu(x), abs(abs(x)) -> abs(x), abs(relu(x)) -> relu(x)."""
    x = node.inputs[0]
    inner = None if x is None or x.producer is None else x.producer.op
    if inner is node.op or (node.op is arithmetic.abs_ and inner is activation.relu):
        return _forward(node, rw, x)
    return False


@local_rule(arithmetic.min_, arithmetic.max_)
def extremum_of_itself(node: Node, rw: Rewriter) -> bool:
    """min(x, x) -> x, max(x, x) -> x."""
    return node.inputs[0] is node.inputs[1] and _forward(node, rw, node.inputs[0])


@local_rule(arithmetic.min_, arithmetic.max_)
def extremum_of_extremum(node: Node, rw: Rewriter) -> bool:
    """max(max(x, a), b) -> max(x, max(a, b)) for constants a and b; min likewise."""
    for idx in (0, 1):
        bound, inner = node.inputs[1 - idx], made_by(node.inputs[idx], node.op)
        if inner is None or bound is None or not is_constant(bound):
            continue
        for side in (0, 1):
            x, first = inner.inputs[side], inner.inputs[1 - side]
            if x is not None and first is not None and is_constant(first) and not is_constant(x):
                b = rw.builder(node)
                rw.replace(node, b.op(node.op, x, b.op(node.op, first, bound)))
                return True
    return False


@local_rule(activation.clip)
def clip_of_clip(node: Node, rw: Rewriter) -> bool:
    """clip(clip(x, a, b), c, d) -> clip(x, …) where one interval follows from both.

    A relu counts as a clip from 0. clip(y, c, d) is min(max(y, c), d), so the result is
    min(max(x, max(a, c)), …) only while a <= b, c <= d and the intervals meet.
    """
    if node.inputs[1] is not None or node.inputs[2] is not None or node.inputs[0] is None:
        return False
    inner = node.inputs[0].producer
    bounds = None if inner is None else _bounds(inner)
    own = _bounds(node)
    if bounds is None or own is None or inner is None or inner.inputs[0] is None:
        return False
    low, high = max(bounds[0], own[0]), min(bounds[1], own[1])
    if bounds[0] > bounds[1] or own[0] > own[1] or low > high:
        return False
    made = rw.builder(node).op(
        activation.clip,
        inner.inputs[0],
        min=None if low == -np.inf else low,
        max=None if high == np.inf else high,
    )
    rw.replace(node, made)
    return True


@local_rule(activation.relu)
def relu_of_clip(node: Node, rw: Rewriter) -> bool:
    """relu(clip(x, a, b)) -> clip(x, a, b) where a >= 0."""
    inner = made_by(node.inputs[0], activation.clip)
    bounds = None if inner is None else _bounds(inner)
    return bounds is not None and 0 <= bounds[0] <= bounds[1] and _forward(node, rw, node.inputs[0])


def _bounds(node: Node) -> tuple[float, float] | None:
    if node.op is activation.relu:
        return 0.0, np.inf
    if node.op is not activation.clip or node.inputs[1] is not None or node.inputs[2] is not None:
        return None
    low, high = node.attrs["min"], node.attrs["max"]
    return -np.inf if low is None else low, np.inf if high is None else high


@local_rule(activation.clip)
def clip_without_bounds(node: Node, rw: Rewriter) -> bool:
    """clip(x) -> x."""
    return _bounds(node) == (-np.inf, np.inf) and _forward(node, rw, node.inputs[0])


@local_rule(arithmetic.min_, arithmetic.max_)
def bound_at_infinity(node: Node, rw: Rewriter) -> bool:
    """`min(x, inf) -> x`, `max(x, -inf) -> x`."""
    if len(node.inputs) != 2:
        return False
    nothing = np.inf if node.op is arithmetic.min_ else -np.inf
    return _forward(node, rw, other_operand(node, nothing))


@local_rule(linalg.gemm)
def gemm_zero_bias(node: Node, rw: Rewriter) -> bool:
    """gemm(a, b, 0) -> gemm(a, b)."""
    bias = node.inputs[2]
    if bias is None or (uniform(bias) != 0.0 and node.attrs["beta"] != 0.0):
        return False
    rw.update(node, {2: None})
    return True


_CONDITIONAL: tuple[OpSpec, ...] = (logical.where,)


@local_rule(*_CONDITIONAL)
def where_decided(node: Node, rw: Rewriter) -> bool:
    """where(true, a, b) -> a, where(false, a, b) -> b, where(c, a, a) -> a."""
    condition, a, b = node.inputs
    if a is b:
        return _forward(node, rw, a)
    truth = uniform(condition)
    return truth is not None and _forward(node, rw, a if truth else b)


@local_rule(logical.logical_and, logical.logical_or, logical.logical_xor)
def truth_table(node: Node, rw: Rewriter) -> bool:
    """`x and true -> x`, `x and false -> false`, `x or false -> x`, `x or true -> true`."""
    for idx in (0, 1):
        value, partner = node.inputs[idx], node.inputs[1 - idx]
        truth = uniform(value)
        if truth is None:
            continue
        if truth == (node.op is logical.logical_and):
            return _forward(node, rw, partner)
        if node.op is not logical.logical_xor:
            return _forward(node, rw, value)
        return False
    if node.op is not logical.logical_xor and node.inputs[0] is node.inputs[1]:
        return _forward(node, rw, node.inputs[0])
    return False


RULES = RuleSet(
    add_zero,
    subtract_zero,
    multiply_by_one,
    multiply_by_zero,
    divide_by_one,
    simple_power,
    involution,
    idempotent,
    extremum_of_itself,
    extremum_of_extremum,
    clip_of_clip,
    clip_without_bounds,
    bound_at_infinity,
    relu_of_clip,
    gemm_zero_bias,
    where_decided,
    truth_table,
)
