"""How bounds go through elementwise operators; see `intervals`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Node
from regraft.ir.ops import activation, arithmetic, cast, functions, logical
from regraft.ir.opspec import OpSpec
from regraft.passes.analysis.bounds import (
    Bounds,
    IntervalRule,
    Operands,
    at_rank,
    hull,
    needed,
    times,
    widened,
)

Array = np.ndarray[Any, Any]


def _rising(node: Node, operands: Operands) -> Bounds | None:
    """A function that never falls takes bounds to bounds."""
    x = needed(operands, 0)
    low, high = (
        np.asarray(evaluate_node(node, [end], {}, oracle=True)[0], np.float64)
        for end in (x.low, x.high)
    )
    return widened(Bounds(low, high), _ULPS)


_ULPS = 8
"""How many roundings runtimes' approximations of functions are off by; most state 4 or less."""

_DIPS: Mapping[OpSpec, float] = {
    activation.gelu: -0.170041, activation.swish: -0.278465, activation.mish: -0.308843,
    activation.hard_swish: -0.375,
}  # fmt: skip
"""Functions that fall to a least value and rise from there on, with a bound of that value."""


def _dipping(node: Node, operands: Operands) -> Bounds | None:
    if node.op is activation.swish and node.attrs["alpha"] != 1.0:
        return None
    x = needed(operands, 0)
    ends = [
        np.where(np.isneginf(end), 0.0, evaluate_node(node, [end], {}, oracle=True)[0])
        for end in (x.low, x.high)
    ]
    # they rise above zero and lie between the dip and zero below it
    dip = np.where(x.low < 0, _DIPS[node.op], ends[0])
    return widened(Bounds(dip, np.where(x.high <= 0, 0.0, ends[1])), _ULPS)


def _relu(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    return Bounds(np.maximum(x.low, 0.0), np.maximum(x.high, 0.0))


def _clip(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    low, high = x.low, x.high
    for name, limit in (("min", np.maximum), ("max", np.minimum)):
        bound = node.static(name)
        if bound is None and node.operand(name) is not None:
            return None
        if bound is not None:
            low, high = limit(low, float(bound)), limit(high, float(bound))
    return Bounds(low, high)


def _add(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 0), needed(operands, 1)
    return widened(Bounds(a.low + b.low, a.high + b.high))


def _sub(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 0), needed(operands, 1)
    return widened(Bounds(a.low - b.high, a.high - b.low))


def _mul(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 0), needed(operands, 1)
    if node.inputs[0] is node.inputs[1]:
        return widened(_absolute(a, lambda x: x * x))
    return widened(hull([times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]))


def _div(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 0), needed(operands, 1)
    if not np.all((b.low > 0) | (b.high < 0)):
        return None
    return widened(hull([times(x, 1 / y) for x in (a.low, a.high) for y in (b.low, b.high)]), 2)


def _absolute(x: Bounds, fn: Callable[[Array], Array]) -> Bounds:
    """Returns the bounds of a function of the absolute value that rises with it."""
    least = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))
    return Bounds(fn(least), fn(x.magnitude))


def _abs(node: Node, operands: Operands) -> Bounds | None:
    return _absolute(needed(operands, 0), lambda x: x)


def _neg(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    return Bounds(-x.high, -x.low)


def _extremum(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 0), needed(operands, 1)
    fn = np.minimum if node.op is arithmetic.min_ else np.maximum
    return Bounds(fn(a.low, b.low), fn(a.high, b.high))


def _where(node: Node, operands: Operands) -> Bounds | None:
    a, b = needed(operands, 1), needed(operands, 2)
    rank = node.output.rank or 0
    found = at_rank(a, rank).join(at_rank(b, rank))
    return found


def _keeping(node: Node, operands: Operands) -> Bounds | None:
    return operands[0]


def _cast(node: Node, operands: Operands) -> Bounds | None:
    dtype = node.output.dtype
    return operands[0] if dtype is not None and dtype.is_float else None


RULES: Mapping[OpSpec, IntervalRule] = {
    activation.relu: _relu,
    activation.clip: _clip,
    **dict.fromkeys(
        (activation.sigmoid, activation.hard_sigmoid, activation.softplus, activation.softsign,
         activation.elu, activation.selu, functions.tanh, functions.exp, functions.erf,
         functions.atan),
        _rising,
    ),
    **dict.fromkeys(_DIPS, _dipping),
    arithmetic.add: _add,
    arithmetic.sub: _sub,
    arithmetic.mul: _mul,
    arithmetic.div: _div,
    arithmetic.min_: _extremum,
    arithmetic.max_: _extremum,
    arithmetic.abs_: _abs,
    arithmetic.neg: _neg,
    logical.where: _where,
    cast.cast: _cast,
}  # fmt: skip
