"""alpha-entmax of scores in standard operators: exact by sorting, else by Halley's steps.

Source: Peters et al., Sparse Sequence-to-Sequence Models, 2019; Gonçalves et al., AdaSplash, 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from regraft.ir.graph import Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    cast,
    cumulative,
    fill,
    functions,
    logical,
    selecting,
)
from regraft.ir.ops.attention_scores import Scored, lowest
from regraft.ir.types import DType

_STEPS = 12
"""Steps of the root finder of entmax; 4 to 6 reach the precision of f32."""


def entmax(s: Scored, fixed: float, alpha: Value | None) -> Value:
    """Returns the weights [B, H, S, T] of scores.

    Args:
        s: The scores.
        fixed: alpha, above 1, where none is learned.
        alpha: The learned one of each head, [H], or None.
    """
    b = s.b
    shown = b.op(logical.where, s.shown, s.x, s.number(lowest(s.dtype)))
    less = b.op(arithmetic.sub, shown, s.top(shown))
    if alpha is not None:
        slope = b.op(arithmetic.sub, s.per_head(alpha), s.number(1))
    else:
        slope = s.number(fixed - 1)
    # no key more than 1 below the largest has weight, in these units
    z = b.op(arithmetic.max_, b.op(arithmetic.mul, less, slope), s.number(-1))
    tau = _SORTED[fixed](s, z) if alpha is None and fixed in _SORTED else _root(s, z, slope)
    above = b.op(activation.relu, b.op(arithmetic.sub, z, tau))
    power = b.op(functions.reciprocal, slope)
    return s.share(s.zeroed(b.op(arithmetic.pow_, above, power)))


def _sorted(s: Scored, z: Value) -> tuple[Value, Value]:
    """Returns the scores in falling order, and their places from 1."""
    b, T = s.b, s.sizes[3]
    ordered = b.multi(selecting.top_k, z, k=T, axis=-1, num_outputs=2)[0]
    places = b.op(fill.range_, start=1, limit=T + 1, delta=1, dtype=DType.I64)
    return ordered, b.op(cast.cast, places, to=s.dtype)


def _sparsemax_tau(s: Scored, z: Value) -> Value:
    b = s.b
    ordered, places = _sorted(s, z)
    over = b.op(arithmetic.sub, b.op(cumulative.cumsum, ordered, axis=3), s.number(1))
    inside = b.op(logical.greater, b.op(arithmetic.mul, ordered, places), over)
    tau = b.op(arithmetic.div, over, places)
    return _last(s, tau, inside)


def _entmax15_tau(s: Scored, z: Value) -> Value:
    b = s.b
    ordered, places = _sorted(s, z)
    mean = b.op(arithmetic.div, b.op(cumulative.cumsum, ordered, axis=3), places)
    square = b.op(arithmetic.mul, ordered, ordered)
    squares = b.op(arithmetic.div, b.op(cumulative.cumsum, square, axis=3), places)
    spread = b.op(arithmetic.sub, squares, b.op(arithmetic.mul, mean, mean))
    rest = b.op(arithmetic.sub, b.op(functions.reciprocal, places), spread)
    tau = b.op(arithmetic.sub, mean, b.op(functions.sqrt, b.op(activation.relu, rest)))
    return _last(s, tau, b.op(logical.less_or_equal, tau, ordered))


def _last(s: Scored, tau: Value, inside: Value) -> Value:
    """Returns the threshold of the largest support: it grows with the support."""
    low = s.number(-2)  # the first place is always inside
    return s.top(s.b.op(logical.where, inside, tau, low))


_SORTED: Mapping[float, Callable[[Scored, Value], Value]] = {
    2.0: _sparsemax_tau,
    1.5: _entmax15_tau,
}


def _root(s: Scored, z: Value, slope: Value) -> Value:
    """Returns the threshold by Halley's steps, halving the bracket where they leave it.

    Source: Gonçalves et al., AdaSplash, 2025, algorithm 1.
    """
    op = s.b.op
    zero = s.number(0)
    power = op(functions.reciprocal, slope)
    first, second = (op(arithmetic.sub, power, s.number(i)) for i in (1, 2))
    low = op(arithmetic.mul, s.top(z), zero)
    count = op(arithmetic.max_, s.total(op(cast.cast, s.shown, to=s.dtype)), s.number(1))
    high = op(arithmetic.sub, low, op(arithmetic.pow_, count, op(arithmetic.neg, slope)))
    low = op(arithmetic.sub, low, s.number(1))
    tau = op(arithmetic.mul, op(arithmetic.add, low, high), s.number(0.5))
    for _ in range(_STEPS):
        above = op(arithmetic.sub, z, tau)
        inside = op(logical.greater, above, zero)
        base = op(logical.where, inside, above, s.number(1))

        def summed(exponent: Value, base: Value = base, inside: Value = inside) -> Value:
            terms = op(arithmetic.pow_, base, exponent)
            return s.total(op(logical.where, inside, terms, zero))

        f = op(arithmetic.sub, summed(power), s.number(1))
        slope_ = op(arithmetic.neg, op(arithmetic.mul, power, summed(first)))
        bend = op(arithmetic.mul, op(arithmetic.mul, power, first), summed(second))
        is_low = op(logical.greater_or_equal, f, zero)
        low = op(logical.where, is_low, tau, low)
        high = op(logical.where, is_low, high, tau)
        twice = op(arithmetic.mul, s.number(2), op(arithmetic.mul, slope_, slope_))
        under = op(arithmetic.sub, twice, op(arithmetic.mul, f, bend))
        over = op(arithmetic.mul, s.number(2), op(arithmetic.mul, f, slope_))
        next_ = op(arithmetic.sub, tau, op(arithmetic.div, over, under))
        fits = op(
            logical.logical_and,
            op(logical.greater_or_equal, next_, low),
            op(logical.less_or_equal, next_, high),
        )
        middle = op(arithmetic.mul, op(arithmetic.add, low, high), s.number(0.5))
        tau = op(logical.where, fits, next_, middle)
    return tau
