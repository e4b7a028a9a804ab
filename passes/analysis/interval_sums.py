"""How bounds go through products, convolutions and normalizations; see `intervals`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops import attention, conv, linalg, norm, rnn, softmax
from regraft.ir.ops.attention_weights import NORMALIZERS
from regraft.ir.opspec import OpSpec
from regraft.passes.analysis.bounds import (
    EPS,
    Bounds,
    IntervalRule,
    Operands,
    at_rank,
    between,
    hull,
    needed,
    times,
    widened,
)

Array = np.ndarray[Any, Any]

# -- sums of products ------------------------------------------------------------------------------


def _weighted(x: Bounds, weights: Array) -> Bounds:
    """Returns bounds of `x @ weights` for x f64[..., K or 1] and weights f64[K, N]."""
    width = weights.shape[0]
    low, high = (np.broadcast_to(end, (*end.shape[:-1], width)) for end in (x.low, x.high))
    up, down = np.maximum(weights, 0), np.minimum(weights, 0)
    finite_low, finite_high = (np.where(np.isfinite(end), end, 0.0) for end in (low, high))
    least = finite_low @ up + finite_high @ down
    most = finite_high @ up + finite_low @ down
    reach = np.maximum(np.abs(finite_low), np.abs(finite_high)) @ np.abs(weights)
    open_low, open_high = np.isinf(low).astype(float), np.isinf(high).astype(float)
    falls = open_low @ (up > 0).astype(float) + open_high @ (down < 0).astype(float)
    rises = open_high @ (up > 0).astype(float) + open_low @ (down < 0).astype(float)
    bounds = Bounds(np.where(falls > 0, -np.inf, least), np.where(rises > 0, np.inf, most))
    return Bounds(bounds.low - width * EPS * reach, bounds.high + width * EPS * reach)


def _matmul(node: Node, operands: Operands) -> Bounds | None:
    weights = constant_of(node.inputs[1], 1 << 62)
    x = needed(operands, 0)
    if weights is None or weights.ndim != 2 or x.low.ndim < 1:
        return None
    wide = weights.astype(np.float64)
    found = _weighted(x, wide)
    ball = _ball(node, wide)
    return found if ball is None else found.meet(ball)


def _gemm(node: Node, operands: Operands) -> Bounds | None:
    weights = constant_of(node.inputs[1], 1 << 62)
    if weights is None or node.attrs["trans_a"]:
        return None
    wide = weights.astype(np.float64) * node.attrs["alpha"]
    wide = wide.T if node.attrs["trans_b"] else wide
    found = _weighted(needed(operands, 0), wide)
    ball = _ball(node, wide)
    found = found if ball is None else found.meet(ball)
    bias = operands[2] if len(operands) > 2 else None
    if bias is None:
        return found
    beta = node.attrs["beta"]
    ends = hull([bias.low * beta, bias.high * beta])
    return widened(Bounds(found.low + ends.low, found.high + ends.high))


def _ball(node: Node, weights: Array) -> Bounds | None:
    """Returns the bounds of a product that reads a norm of its last axis.

    A normalized row has a length of at most sqrt(n), so that a product with a column `w` is at
    most `sqrt(n) |w|`; bounds of single elements would allow all of them at once.
    """
    value = node.inputs[0]
    source = None if value is None else value.producer
    if source is None or source.op not in (norm.layer_norm, norm.rms_norm):
        return None
    gain, shift = _gain_and_shift(source)
    if gain is None or source.output.rank is None or gain.size != weights.shape[0]:
        return None
    if source.attrs["axis"] % source.output.rank != source.output.rank - 1:
        return None
    reach = np.sqrt(gain.size) * np.linalg.norm(gain[:, None] * weights, axis=0)
    centre = shift @ weights
    slack = gain.size * EPS * (reach + np.abs(shift) @ np.abs(weights))
    shape = (1,) * (source.output.rank - 1) + (-1,)
    low, high = centre - reach - slack, centre + reach + slack
    return Bounds(low.reshape(shape), high.reshape(shape))


def _gain_and_shift(node: Node) -> tuple[Array | None, Array]:
    gain = constant_of(node.inputs[1], 1 << 62)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = constant_of(bias, 1 << 62) if bias is not None else None
    if gain is None or gain.ndim != 1 or (bias is not None and shift is None):
        return None, np.zeros(0)
    wide = gain.astype(np.float64)
    return wide, np.zeros_like(wide) if shift is None else shift.astype(np.float64)


def _conv(node: Node, operands: Operands) -> Bounds | None:
    weights = constant_of(node.inputs[1], 1 << 62)
    x = needed(operands, 0)
    if weights is None:
        return None
    rank = x.low.ndim
    # one bound per channel, of every place; padding adds zeros
    x = x.over((0, *range(2, rank)))
    if any(node.attrs["pads"] or ()) or node.attrs.get("auto_pad", "notset") != "notset":
        x = x.join(between(0.0, 0.0, rank))
    out, per_group = weights.shape[:2]
    groups: int = node.attrs["groups"]
    taps = weights.astype(np.float64).reshape(groups, out // groups, per_group, -1)
    low, high = (
        np.broadcast_to(end.reshape(1, -1), (1, groups * per_group)).reshape(groups, per_group)
        for end in (x.low, x.high)
    )
    parts = []
    for group in range(groups):
        # every tap reads another place, of the same bounds
        flat = taps[group].transpose(1, 2, 0).reshape(-1, out // groups)
        repeat = flat.shape[0] // per_group
        ends = Bounds(np.repeat(low[group], repeat)[None], np.repeat(high[group], repeat)[None])
        parts.append(_weighted(ends, flat))
    found = Bounds(
        np.concatenate([part.low for part in parts], 1),
        np.concatenate([part.high for part in parts], 1),
    )
    bias = operands[2] if len(operands) > 2 else None
    if bias is not None:
        found = widened(Bounds(found.low + bias.low, found.high + bias.high))
    shape = (1, out, *(1,) * (rank - 2))
    return Bounds(found.low.reshape(shape), found.high.reshape(shape))


# -- normalizations --------------------------------------------------------------------------------


def _norm(node: Node, operands: Operands) -> Bounds | None:
    """Elements of a normalized row of n are at most sqrt(n) apart from their mean."""
    rank = node.output.rank or 0
    axes = range(node.attrs["axis"] % max(rank, 1), rank)
    sizes = [(node.output.shape or ())[axis] for axis in axes]
    gain = operands[1]
    if gain is None or not all(isinstance(size, int) for size in sizes):
        return None
    reach = np.sqrt(prod(int(str(size)) for size in sizes))
    spread = gain.magnitude * reach
    found = at_rank(Bounds(-spread, spread), rank)
    bias = operands[2] if len(operands) > 2 else None
    if bias is None:
        return widened(found)
    shift = at_rank(bias, rank)
    return widened(Bounds(found.low + shift.low, found.high + shift.high))


def _batch_norm(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    parts = [constant_of(value, 1 << 62) for value in node.inputs[1:5]]
    if any(part is None for part in parts):
        return None
    gain, shift, mean, var = (np.asarray(part, np.float64) for part in parts)
    factor = gain / np.sqrt(var + node.attrs["epsilon"])
    shape = (1, -1, *(1,) * (x.low.ndim - 2))
    factor, shift = factor.reshape(shape), (shift - mean * factor.reshape(-1)).reshape(shape)
    ends = hull([times(x.low, factor), times(x.high, factor)])
    return widened(Bounds(ends.low + shift, ends.high + shift))


def _softmax(node: Node, operands: Operands) -> Bounds | None:
    return widened(between(0.0, 1.0, node.output.rank), 8)  # of an exponential over a sum


def _recurrent(node: Node, operands: Operands) -> Bounds | None:
    """Hidden states are products of saturated factors, unless they were given from outside."""
    usual = {"Sigmoid", "Tanh"}
    if not {*node.attrs["activations"]} <= usual or node.operand("initial_h") is not None:
        return None
    return between(-1.0, 1.0, node.output.rank)


def _attention(node: Node, operands: Operands) -> Bounds | None:
    """Mixtures of values where weights sum to 1; a fully masked row is zero."""
    v = needed(operands, 2)
    if not NORMALIZERS[node.attrs["normalizer"]].sums_to_one:
        return None
    each = v.over(tuple(range(v.low.ndim - 1)))
    return each.join(between(0.0, 0.0, v.low.ndim))


RULES: Mapping[OpSpec, IntervalRule] = {
    linalg.matmul: _matmul,
    linalg.gemm: _gemm,
    conv.conv: _conv,
    norm.layer_norm: _norm,
    norm.rms_norm: _norm,
    norm.batch_norm: _batch_norm,
    softmax.softmax: _softmax,
    rnn.lstm: _recurrent,
    rnn.gru: _recurrent,
    attention.attention: _attention,
}
