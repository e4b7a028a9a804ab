"""InLine attention: rows of weights that sum to 1 without a softmax, and a local residual.

The weights are the first terms of softmax's: (1 + s - mean of s) / n. The residual adds a sum over
neighbouring values whose factors are predicted from the mean query; it begins at 0.

Source: Han et al., Bridging the Divide: Reconsidering Softmax and Linear Attention, 2024, eq. 6.
"""

from __future__ import annotations

import math

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    fill,
    linalg,
    linear_attention,
    reduce,
    reshaping,
    slicing,
)
from regraft.passes.linearization.features import LearnedMap, before_map
from regraft.passes.linearization.place import Place

_IDENTITY = LearnedMap("identity", "none")
_MIN_SIDE = 3


def inline(place: Place) -> tuple[Value, Value]:
    """Returns [B, H, N, E] with the local residual, and without."""
    q, k = (before_map(place, which, _IDENTITY, 0) for which in "qk")
    linear = place.b.op(
        linear_attention.linear_attention, q, k, place.operand("v"), rule="linear",
        scale=place.node.attrs["scale"], normalizer="mean", causal=False,
        kv_groups=place.kv_groups,
    )  # fmt: skip
    local = _local(place)
    return place.b.op(arithmetic.add, linear, local), linear


def _local(place: Place) -> Value:
    """Returns a sum over neighbours: 3 x 3 where the tokens are a square, else 3 in line."""
    b, v = place.b, place.operand("v")
    N = place.keys[2]
    side = math.isqrt(N) if isinstance(N, int) else 0
    prefix = N - side * side if isinstance(N, int) else 0
    is_square = side >= _MIN_SIDE and prefix <= 1
    count = 9 if is_square else 3
    E = place.value_size
    factors = _factors(place, count, E)
    if place.kv_groups != 1:
        v = _per_query_head(place, v)
    B, H = place.shape[0], place.heads
    if not is_square:
        made = [_shifted(place, v, 2, step) for step in (-1, 0, 1)]
        return _weighed(place, made, factors)
    image = _part(place, v, 2, prefix, N)
    image = b.op(reshaping.reshape, image, shape=(B, H, side, side, E))
    made = []
    for row in (-1, 0, 1):
        line = _shifted(place, image, 2, row)
        for column in (-1, 0, 1):
            moved = _shifted(place, line, 3, column)
            made.append(b.op(reshaping.reshape, moved, shape=(B, H, side * side, E)))
    out = _weighed(place, made, factors)
    if not prefix:
        return out
    zeros = _zeros(place, (B, H, prefix, E))
    return b.op(slicing.concat, zeros, out, axis=2)


def _factors(place: Place, count: int, channels: int) -> Value:
    """Returns the factors of all neighbours, [B, H, 1, count * channels]."""
    b, heads, size = place.b, place.heads, place.size
    mean = b.op(reduce.reduce_mean, place.operand("q"), axes=(2,), keepdims=True)
    eye = np.broadcast_to(np.eye(size), (heads, size, size))
    first = place.learned("local_in", eye)
    last = place.learned("local_out", np.zeros((heads, size, count * channels)))
    x = b.op(linalg.matmul, mean, b.op(reshaping.unsqueeze, first, axes=(0,)))
    x = b.op(activation.gelu, x)
    return b.op(linalg.matmul, x, b.op(reshaping.unsqueeze, last, axes=(0,)))


def _weighed(place: Place, rows: list[Value], factors: Value) -> Value:
    b = place.b
    total: Value | None = None
    channels = place.value_size
    for number, row in enumerate(rows):
        factor = _part(place, factors, 3, number * channels, (number + 1) * channels)
        each = b.op(arithmetic.mul, row, factor)
        total = each if total is None else b.op(arithmetic.add, total, each)
    if total is None:
        raise AssertionError("there are neighbours")
    return total


def _per_query_head(place: Place, v: Value) -> Value:
    b, (B, K, N, E) = place.b, v.shape or ()
    twice = b.op(slicing.concat, *[b.op(reshaping.unsqueeze, v, axes=(2,))] * place.kv_groups,
                 axis=2)  # fmt: skip
    return b.op(reshaping.reshape, twice, shape=(B, K * place.kv_groups, N, E))


def _shifted(place: Place, x: Value, axis: int, step: int) -> Value:
    """Returns x moved along an axis, zeros behind."""
    if step == 0:
        return x
    shape = x.shape or ()
    N = shape[axis]
    zeros = _zeros(place, (*shape[:axis], 1, *shape[axis + 1 :]))
    if step > 0:
        return place.b.op(slicing.concat, zeros, _part(place, x, axis, 0, N - 1), axis=axis)
    return place.b.op(slicing.concat, _part(place, x, axis, 1, N), zeros, axis=axis)


def _part(place: Place, x: Value, axis: int, start: DimLike, end: DimLike) -> Value:
    if start == 0 and end == (x.shape or ())[axis]:
        return x
    return place.b.op(slicing.slice_, x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))


def _zeros(place: Place, shape: tuple[DimLike, ...]) -> Value:
    zero = np.zeros(1, place.dtype.numpy)
    return place.b.op(fill.constant_of_shape, shape=shape, value=zero)
