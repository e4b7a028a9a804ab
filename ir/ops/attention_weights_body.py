"""Score modifiers and normalizers of attention in standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.ir.dims import dim_min
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
from regraft.ir.ops.attention_entmax_body import entmax
from regraft.ir.ops.attention_scores import Scored, lowest
from regraft.ir.ops.attention_weights import FEW_KEYS, NORMALIZERS
from regraft.ir.types import DType

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts: the product of the first and a small integer is exact in f32."""

_HALF_LN2 = 0.3466
"""What is left of a score beside a whole power of two, half of ln 2 rounded up."""


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
    logits = b.op(logical.where, s.shown, s.x, s.number(lowest(s.dtype)))
    if sinks is None:
        return b.op(softmax.softmax, logits, axis=-1)
    B, H, S, T = s.sizes
    column = b.op(repeating.expand, s.per_head(sinks), shape=(B, H, S, 1))
    joined = b.op(softmax.softmax, b.op(slicing.concat, logits, column, axis=3), axis=-1)
    return s.first(joined, T)


def _two_pass(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    b = s.b
    # the lowest numbers of a mask stay above those of hidden keys, in units of ln 2 as well
    x = b.op(arithmetic.max_, s.x, s.number(lowest(s.dtype) / 8))
    power = b.op(rounding.round_, b.op(arithmetic.mul, x, s.number(float(np.log2(np.e)))))
    rest = b.op(arithmetic.sub, x, b.op(arithmetic.mul, power, s.number(_LN2_HIGH)))
    rest = b.op(arithmetic.sub, rest, b.op(arithmetic.mul, power, s.number(_LN2_LOW)))
    # beyond 2^24 a rounding of x is more than ln 2
    rest = b.op(activation.clip, rest, s.number(-_HALF_LN2), s.number(_HALF_LN2))
    mantissa = b.op(functions.exp, rest)
    shown = b.op(logical.where, s.shown, power, s.number(lowest(s.dtype) / 4))
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
    low = s.number(lowest(s.dtype))
    shown = b.op(logical.where, s.shown, s.x, low)
    best = b.multi(selecting.top_k, shown, k=k, axis=-1, num_outputs=2)[0]
    least = b.op(reduce.reduce_min, best, axes=(3,), keepdims=True)
    kept = b.op(logical.greater_or_equal, shown, least)
    kept = b.op(logical.logical_and, kept, s.shown)
    of_kept = Scored(b, s.x, kept, s.sizes)
    return of_kept.zeroed(_softmax(of_kept, p, sinks, None))


def _entmax(s: Scored, p: dict[str, float], sinks: Value | None, alpha: Value | None) -> Value:
    if alpha is None and p["alpha"] == 1:
        return _softmax(s, p, None, None)
    return entmax(s, p["alpha"], alpha)


_WITH_SINKS = frozenset({"softmax", "clipped", "top_k"})
"""Normalizers that build the softmax of all scores and sinks themselves."""


_BUILDS: Mapping[str, _Build] = {
    "softmax": _softmax,
    "two_pass": _two_pass,
    "clipped": _clipped,
    "stablemax": _stablemax,
    "softplus": _softplus,
    "entmax": _entmax,
    "top_k": _top_k,
}
