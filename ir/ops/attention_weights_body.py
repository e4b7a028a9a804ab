"""Score modifiers and normalizers of attention in standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, dim_min
from regraft.ir.graph import Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    cast,
    cumulative,
    fill,
    functions,
    logical,
    reduce,
    repeating,
    reshaping,
    rounding,
    selecting,
    slicing,
    softmax,
)
from regraft.ir.ops.attention_weights import FEW_KEYS, HIDDEN, NORMALIZERS
from regraft.ir.types import DType

_STEPS = 12
"""Steps of the root finder of entmax; 4 to 6 reach the precision of f32."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts: the product of the first and a small integer is exact in f32."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores on their way to weights.

    Attributes:
        b: Where to build.
        x: Scores [B, H, S, T], finite where keys are visible.
        shown: Visible keys, bool, broadcasts to the scores; its last axis has size T.
        sizes: B, H, S, T.
        num_sinks: Scores at the end that are no keys.
    """

    b: Builder
    x: Value
    shown: Value
    sizes: tuple[DimLike, DimLike, DimLike, DimLike]
    num_sinks: int = 0

    @property
    def dtype(self) -> DType:
        """The element type of the scores."""
        if self.x.dtype is None:
            raise AssertionError("the body of attention needs an element type")
        return self.x.dtype

    def number(self, value: float) -> Value:
        """Returns a constant of the type of the scores."""
        return self.b.constant(value, self.dtype)

    def zeroed(self, x: Value) -> Value:
        """Returns `x`, 0 where no key is visible."""
        return self.b.op(logical.where, self.shown, x, self.number(0))

    def total(self, x: Value) -> Value:
        """Returns sums over the keys."""
        return self.b.op(reduce.reduce_sum, x, axes=((x.rank or 4) - 1,), keepdims=True)

    def top(self, x: Value) -> Value:
        """Returns maxima over the keys."""
        return self.b.op(reduce.reduce_max, x, axes=((x.rank or 4) - 1,), keepdims=True)

    def share(self, x: Value) -> Value:
        """Returns `x` over its sum; a row of zeros stays."""
        total = self.total(x)
        is_empty = self.b.op(logical.equal, total, self.number(0))
        safe = self.b.op(logical.where, is_empty, self.number(1), total)
        return self.b.op(arithmetic.div, x, safe)

    def keys(self) -> Value:
        """Returns the number of visible keys of each row."""
        count = self.total(self.b.op(cast.cast, self.shown, to=self.dtype))
        if not self.num_sinks:
            return count
        return self.b.op(arithmetic.sub, count, self.number(self.num_sinks))

    def with_sinks(self, sinks: Value) -> Scored:
        """Returns the scores with one more per head."""
        B, H, S, T = self.sizes
        b = self.b
        column = b.op(repeating.expand, self.per_head(sinks), shape=(B, H, S, 1))
        lead = (self.shown.shape or ())[:-1]
        more = b.op(fill.constant_of_shape, shape=(*lead, 1), value=np.ones(1, np.bool_))
        return Scored(
            b,
            b.op(slicing.concat, self.x, column, axis=3),
            b.op(slicing.concat, self.shown, more, axis=len(lead)),
            (B, H, S, T + 1),
            1,
        )

    def first(self, x: Value, count: DimLike) -> Value:
        """Returns the first columns of scores or weights."""
        return self.b.op(slicing.slice_, x, starts=(0,), ends=(count,), axes=(3,), steps=(1,))

    def per_head(self, x: Value) -> Value:
        """Returns [H] lined up with the scores."""
        made = self.b.op(reshaping.reshape, x, shape=(1, self.sizes[1], 1, 1))
        return made if made.dtype is self.dtype else self.b.op(cast.cast, made, to=self.dtype)


def scored(
    b: Builder,
    x: Value,
    mask: Value | None,
    visible: Value | None,
    sizes: tuple[DimLike, DimLike, DimLike, DimLike],
) -> Scored:
    """Returns scores with what hides keys apart from them.

    Args:
        b: Where to build.
        x: [B, H, S, T], float masks added; may be -inf where hidden.
        mask: The float mask that was added, or None.
        visible: What else leaves keys visible, bool, or None.
        sizes: B, H, S, T.
    """
    shown = visible
    if mask is not None:
        number = b.constant(HIDDEN, mask.dtype)
        above = b.op(logical.greater, mask, number)
        shown = above if shown is None else b.op(logical.logical_and, shown, above)
    if shown is None or (shown.shape or (0,))[-1:] != sizes[3:]:
        every = b.op(fill.constant_of_shape, shape=(1, 1, 1, sizes[3]), value=np.ones(1, np.bool_))
        shown = every if shown is None else b.op(logical.logical_and, shown, every)
    if mask is not None:
        x = b.op(logical.where, shown, x, b.constant(0, x.dtype))
    return Scored(b, x, shown, sizes)


def modify(
    s: Scored, attrs: Mapping[str, Any], gates: Value | None, positions: Value | None
) -> Scored:
    """Returns the scores after the modifier.

    Args:
        s: The scores.
        attrs: Attributes of `attention`.
        gates: [B, H, S], for the modifier `threshold`.
        positions: Key positions of the queries, [S, 1] or [B, 1, S, 1], for `selective`.
    """
    b = s.b
    if attrs["modifier"] == "selective" and positions is not None:
        first = b.op(slicing.slice_, s.zeroed(s.x), starts=(0,), ends=(1,), axes=(1,), steps=(1,))
        chosen = b.op(activation.relu, first)
        keys = b.op(fill.range_, start=0, limit=s.sizes[3], delta=1, dtype=DType.I64)
        spared = b.op(
            logical.logical_or,
            b.op(logical.equal, keys, b.constant(0, DType.I64)),
            b.op(logical.equal, keys, positions),
        )
        chosen = b.op(logical.where, spared, s.number(0), chosen)
        passed = b.op(cumulative.cumsum, chosen, axis=2, exclusive=True)
        shown = s.shown
        (budget,) = attrs["modifier_parameters"] or (0.0,)
        if budget > 0:
            kept = b.op(logical.less_or_equal, passed, s.number(budget))
            shown = b.op(logical.logical_and, shown, kept)
        return Scored(b, b.op(arithmetic.sub, s.x, passed), shown, s.sizes)
    if attrs["modifier"] == "threshold" and gates is not None:
        is_above = b.op(logical.greater, s.x, s.number(0))
        shown = b.op(logical.logical_and, s.shown, is_above)
        staying = b.op(cast.cast, shown, to=s.dtype)
        after = b.op(cumulative.cumsum, staying, axis=3, exclusive=True, reverse=True)
        gate = b.op(reshaping.unsqueeze, gates, axes=(3,))
        if gate.dtype is not s.dtype:
            gate = b.op(cast.cast, gate, to=s.dtype)
        moved = b.op(arithmetic.add, s.x, b.op(arithmetic.mul, gate, after))
        return Scored(b, moved, shown, s.sizes)
    return s


def normalize(
    s: Scored, attrs: Mapping[str, Any], sinks: Value | None, alpha: Value | None
) -> Value:
    """Returns the weights of modified scores, 0 where no key is visible."""
    normalizer = NORMALIZERS[attrs["normalizer"]]
    parameters = normalizer.read(attrs["normalizer_parameters"])
    build = _BUILDS[normalizer.name]
    if sinks is None or normalizer.name in _WITH_SINKS:
        return s.zeroed(build(s, parameters, sinks, alpha))
    made = build(s.with_sinks(sinks), parameters, None, alpha)
    return s.zeroed(s.first(made, s.sizes[3]))


_Build = Callable[[Scored, dict[str, float], "Value | None", "Value | None"], Value]


def _softmax(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    # the lowest number instead of -inf: the softmax of a row without a key is no NaN
    logits = b.op(logical.where, s.shown, s.x, s.number(_lowest(s.dtype)))
    if sinks is None:
        return b.op(softmax.softmax, logits, axis=-1)
    B, H, S, T = s.sizes
    column = b.op(repeating.expand, s.per_head(sinks), shape=(B, H, S, 1))
    joined = b.op(softmax.softmax, b.op(slicing.concat, logits, column, axis=3), axis=-1)
    return s.first(joined, T)


def _two_pass(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    power = b.op(rounding.round_, b.op(arithmetic.mul, s.x, s.number(float(np.log2(np.e)))))
    rest = b.op(arithmetic.sub, s.x, b.op(arithmetic.mul, power, s.number(_LN2_HIGH)))
    rest = b.op(arithmetic.sub, rest, b.op(arithmetic.mul, power, s.number(_LN2_LOW)))
    mantissa = b.op(functions.exp, rest)
    shown = b.op(logical.where, s.shown, power, s.number(_lowest(s.dtype) / 4))
    shift = b.op(arithmetic.sub, power, s.top(shown))
    shift = b.op(arithmetic.min_, shift, s.number(0))  # of hidden keys
    scaled = b.op(arithmetic.mul, mantissa, b.op(arithmetic.pow_, s.number(2), shift))
    return s.share(s.zeroed(scaled))


def _clipped(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    weights = _softmax(s, p, sinks, alpha)
    gamma: Value = s.number(p["gamma"])
    if p["alpha"]:
        keys = b.op(arithmetic.max_, s.keys(), s.number(1))
        share = b.op(arithmetic.div, s.number(p["alpha"]), keys)
        gamma = b.op(arithmetic.sub, gamma, share)
    stretch = b.op(arithmetic.sub, s.number(p["zeta"]), gamma)
    stretched = b.op(arithmetic.add, b.op(arithmetic.mul, weights, stretch), gamma)
    return b.op(activation.clip, stretched, s.number(0), s.number(1))


def _stablemax(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    zero, one = s.number(0), s.number(1)
    falling = b.op(arithmetic.sub, one, b.op(arithmetic.min_, s.x, zero))
    rising = b.op(activation.relu, s.x)
    return s.share(s.zeroed(b.op(arithmetic.add, rising, b.op(functions.reciprocal, falling))))


def _softplus(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    weights = s.share(s.zeroed(b.op(activation.softplus, s.x)))
    if p["power"] <= 0:
        return weights
    keys = s.keys()
    few = b.op(logical.less_or_equal, keys, s.number(FEW_KEYS))
    offset = b.op(logical.where, few, s.number(0), s.number(p["offset"]))
    sharp = b.op(arithmetic.sub, b.op(arithmetic.mul, weights, keys), offset)
    sharp = s.zeroed(b.op(activation.relu, sharp))
    top = s.top(sharp)
    is_empty = b.op(logical.equal, top, s.number(0))
    top = b.op(logical.where, is_empty, s.number(1), top)
    # n to the 15th would overflow
    return s.share(b.op(arithmetic.pow_, b.op(arithmetic.div, sharp, top), s.number(p["power"])))


def _top_k(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    k = dim_min(int(p["k"]), s.sizes[3])
    low = s.number(_lowest(s.dtype))
    shown = b.op(logical.where, s.shown, s.x, low)
    best = b.multi(selecting.top_k, shown, k=k, axis=-1, num_outputs=2)[0]
    least = b.op(reduce.reduce_min, best, axes=(3,), keepdims=True)
    kept = b.op(logical.greater_or_equal, shown, least)
    kept = b.op(logical.logical_and, kept, s.shown)
    of_kept = Scored(b, s.x, kept, s.sizes)
    return of_kept.zeroed(_softmax(of_kept, p, sinks, None))


def _entmax(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    if alpha is None and p["alpha"] == 1:
        return _softmax(s, p, None, None)
    low = s.number(_lowest(s.dtype))
    shown = b.op(logical.where, s.shown, s.x, low)
    less = b.op(arithmetic.sub, shown, s.top(shown))
    if alpha is not None:
        slope = b.op(arithmetic.sub, s.per_head(alpha), s.number(1))
    else:
        slope = s.number(p["alpha"] - 1)
    # no key more than 1 below the largest has weight, in these units
    z = b.op(arithmetic.max_, b.op(arithmetic.mul, less, slope), s.number(-1))
    if alpha is None and p["alpha"] in _SORTED:
        tau = _SORTED[p["alpha"]](s, z)
    else:
        tau = _root(s, z, slope)
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


_WITH_SINKS = frozenset({"softmax", "clipped", "top_k"})
"""Normalizers that build the softmax of all scores and sinks themselves."""


def _lowest(dtype: DType) -> float:
    return float(ml_dtypes.finfo(dtype.numpy).min)


_BUILDS: Mapping[str, _Build] = {
    "softmax": _softmax,
    "two_pass": _two_pass,
    "clipped": _clipped,
    "stablemax": _stablemax,
    "softplus": _softplus,
    "entmax": _entmax,
    "top_k": _top_k,
}
