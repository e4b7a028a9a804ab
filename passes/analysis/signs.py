"""Whether a float is proven to have no negative element, going up from it through the graph.

Two strengths: `PLUS` means that every element is NaN or has a clear sign bit (0.0, positive, Inf);
`NOT_BELOW_ZERO` allows -0.0 besides: runtimes differ in what `relu` and `max(x, 0)` make of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    cast,
    functions,
    gathering,
    reduce,
    repeating,
    reshaping,
    slicing,
    softmax,
)
from regraft.ir.ops.content import at_least
from regraft.ir.ops.logical import where
from regraft.ir.opspec import OpSpec

_MAX_VALUES = 64
_MAX_BYTES = 1 << 16


class Sign(enum.IntEnum):
    """What is proven; the larger, the more."""

    UNKNOWN = 0
    NOT_BELOW_ZERO = 1
    PLUS = 2


def sign_of(value: Value) -> Sign:
    """Returns what is proven of a float value's elements; looks at 64 values at most."""
    return _Prover().sign(value)


class _Prover:
    def __init__(self) -> None:
        self.known: dict[Value, Sign] = {}

    def sign(self, value: Value | None) -> Sign:
        if value is None:
            return Sign.UNKNOWN
        found = self.known.get(value)
        if found is None:
            if len(self.known) >= _MAX_VALUES:
                return Sign.UNKNOWN
            self.known[value] = Sign.UNKNOWN
            found = self.known[value] = self._prove(value)
        return found

    def least(self, node: Node) -> Sign:
        """Returns what holds for all operands."""
        return min(self.sign(value) for value in node.inputs)

    def _prove(self, value: Value) -> Sign:
        node = value.producer
        if node is None:
            return Sign.UNKNOWN
        if is_constant(value):
            array = constant_of(value, _MAX_BYTES)
            return Sign.UNKNOWN if array is None else _sign_of_array(array)
        if node.op in _ALWAYS_PLUS:
            return Sign.PLUS
        if node.op in _KEEPING:
            return self.sign(node.inputs[0])
        if node.op in _COMBINING:
            return self.least(node)
        rule = _RULES.get(node.op)
        return Sign.UNKNOWN if rule is None else rule(node, self)


def _sign_of_array(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Sign:
    wide = np.asarray(array, np.float64)
    if not np.signbit(wide[~np.isnan(wide)]).any():
        return Sign.PLUS
    return Sign.UNKNOWN if (wide < 0).any() else Sign.NOT_BELOW_ZERO


def _is_positive(value: Value | None) -> bool:
    array = constant_of(value, _MAX_BYTES)
    return array is not None and array.size > 0 and bool((np.asarray(array, np.float64) > 0).all())


def _mul(node: Node, prover: _Prover) -> Sign:
    # (-0.0) * (-0.0) is 0.0
    return Sign.PLUS if node.inputs[0] is node.inputs[1] else prover.least(node)


def _add(node: Node, prover: _Prover) -> Sign:
    # -0.0 + 0.0 is 0.0: one operand with a clear sign is enough
    signs = [prover.sign(value) for value in node.inputs]
    return max(signs) if min(signs) is not Sign.UNKNOWN else Sign.UNKNOWN


def _pow(node: Node, prover: _Prover) -> Sign:
    exponent = constant_of(node.inputs[1], _MAX_BYTES)
    if exponent is not None and bool((np.asarray(exponent, np.float64) % 2 == 0).all()):
        return Sign.PLUS
    return _all_plus(prover.sign(node.inputs[0]))  # (-0.0) ** -1 is -Inf


def _div(node: Node, prover: _Prover) -> Sign:
    # 1 / -0.0 is -Inf
    a, b = (prover.sign(value) for value in node.inputs)
    return a if b is Sign.PLUS else Sign.UNKNOWN


def _all_plus(sign: Sign) -> Sign:
    return sign if sign is Sign.PLUS else Sign.UNKNOWN


def _max(node: Node, prover: _Prover) -> Sign:
    if any(_is_positive(value) for value in node.inputs):
        return Sign.PLUS
    signs = [prover.sign(value) for value in node.inputs]
    if min(signs) is Sign.UNKNOWN:
        return min(max(signs), Sign.NOT_BELOW_ZERO)
    return min(signs)


def _clip(node: Node, prover: _Prover) -> Sign:
    low, high = node.operand("min"), node.operand("max")
    x = prover.sign(node.inputs[0])
    if high is not None and prover.sign(high) is not Sign.PLUS:
        return Sign.UNKNOWN
    if _is_positive(low):
        return Sign.PLUS
    if prover.sign(low) is Sign.PLUS:
        return max(x, Sign.NOT_BELOW_ZERO)
    return x if low is None or x is Sign.UNKNOWN else Sign.NOT_BELOW_ZERO


def _cast(node: Node, prover: _Prover) -> Sign:
    x = node.inputs[0]
    if x is None or x.dtype is None:
        return Sign.UNKNOWN
    if x.dtype.is_float:
        return prover.sign(x)
    content = x.content if isinstance(x.content, tuple) else (x.content,)
    is_size = all(item is not None and at_least(item, 0) for item in content)
    return Sign.PLUS if is_size or x.dtype.value.startswith(("u", "bool")) else Sign.UNKNOWN


def _at_least_zero(node: Node, prover: _Prover) -> Sign:
    return max(prover.sign(node.inputs[0]), Sign.NOT_BELOW_ZERO)


def _where(node: Node, prover: _Prover) -> Sign:
    return min(prover.sign(value) for value in node.inputs[1:])


_ALWAYS_PLUS = frozenset({
    arithmetic.abs_, functions.exp, activation.sigmoid, activation.softplus, softmax.softmax,
    reduce.reduce_l1, reduce.reduce_l2, reduce.reduce_sum_square,
})  # fmt: skip

_KEEPING = frozenset({
    cast.identity, reshaping.reshape, reshaping.squeeze, reshaping.unsqueeze, reshaping.transpose,
    repeating.expand, slicing.slice_, slicing.split, gathering.gather,
    reduce.reduce_mean, reduce.reduce_sum, reduce.reduce_min,
})  # fmt: skip
"""Results whose elements have the sign of the first operand's; the maximum of nothing is -Inf."""

_COMBINING = frozenset({slicing.concat, arithmetic.min_})
"""Results with the sign that all operands have."""

_RULES: dict[OpSpec, Callable[[Node, _Prover], Sign]] = {
    arithmetic.mul: _mul,
    arithmetic.add: _add,
    arithmetic.div: _div,
    arithmetic.pow_: _pow,
    arithmetic.max_: _max,
    activation.relu: _at_least_zero,
    functions.sqrt: _at_least_zero,
    functions.reciprocal: lambda node, prover: _all_plus(prover.sign(node.inputs[0])),
    activation.clip: _clip,
    cast.cast: _cast,
    where: _where,
}
