"""Feature maps of linear attention: what makes keys and queries whose products are weights.

```
none     x                      relu    max(x, 0)             elu      elu(x) + 1
exp      exp(x)                 softmax softmax over the channels of a head
hedgehog [softmax(x), softmax(-x)]       twice the channels
taylor   [1, x, x x^T / sqrt(2)]         1 + D + D^2 channels; products are 1 + s + s^2 / 2
```

A learned map is a linear layer before one of these. Source: Katharopoulos et al. 2020 (elu); Kasai
et al. 2021 (relu, T2R); Zhang et al. 2024 (hedgehog, exp); Arora et al. 2024 (taylor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    fill,
    functions,
    reshaping,
    slicing,
    softmax,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """One map.

    Args:
        size: Channels of the result by channels of a head.
        apply: Its meaning on arrays [.., D].
        build: The same in standard operators.
        keeps_zero: Whether a channel of zeros gives zeros, each channel by itself.
    """

    size: Callable[[DimLike], DimLike]
    apply: Callable[[Array], Array]
    build: Callable[[Builder, Value], Value]
    keeps_zero: bool = False


def _same(size: DimLike) -> DimLike:
    return size


def _softmax(x: Array) -> Array:
    raised: Array = np.exp(x - np.max(x, axis=-1, keepdims=True))
    total: Array = raised / np.sum(raised, axis=-1, keepdims=True)
    return total


def _elu(x: Array) -> Array:
    raised: Array = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    return raised


def _taylor(x: Array) -> Array:
    squares = (x[..., :, None] * x[..., None, :]) * x.dtype.type(2**-0.5)
    flat = squares.reshape(*x.shape[:-1], -1)
    return np.concatenate([np.ones_like(x[..., :1]), x, flat], axis=-1)


def _build_elu(b: Builder, x: Value) -> Value:
    return b.op(arithmetic.add, b.op(activation.elu, x), b.constant(1, x.dtype))


def _build_hedgehog(b: Builder, x: Value) -> Value:
    halves = [b.op(softmax.softmax, each, axis=-1) for each in (x, b.op(arithmetic.neg, x))]
    return b.op(slicing.concat, *halves, axis=(x.rank or 0) - 1)


def _build_taylor(b: Builder, x: Value) -> Value:
    shape = x.shape or ()
    size, rank = shape[-1], len(shape)
    column, row = (b.op(reshaping.unsqueeze, x, axes=(axis,)) for axis in (rank, rank - 1))
    scaled = b.op(arithmetic.mul, column, b.constant(2**-0.5, x.dtype))
    squares = b.op(arithmetic.mul, scaled, row)
    flat = b.op(reshaping.reshape, squares, shape=(*shape[:-1], size * size))
    one = np.ones(1, x.dtype.numpy if x.dtype else np.float32)
    ones = b.op(fill.constant_of_shape, shape=(*shape[:-1], 1), value=one)
    return b.op(slicing.concat, ones, x, flat, axis=rank - 1)


FEATURE_MAPS: Mapping[str, FeatureMap] = {
    "none": FeatureMap(_same, lambda x: x, lambda b, x: x, True),
    "relu": FeatureMap(
        _same, lambda x: np.maximum(x, 0), lambda b, x: b.op(activation.relu, x), True
    ),
    "elu": FeatureMap(_same, _elu, _build_elu),
    "exp": FeatureMap(_same, np.exp, lambda b, x: b.op(functions.exp, x)),
    "softmax": FeatureMap(_same, _softmax, lambda b, x: b.op(softmax.softmax, x, axis=-1)),
    "hedgehog": FeatureMap(
        lambda size: 2 * size,
        lambda x: np.concatenate([_softmax(x), _softmax(-x)], axis=-1),
        _build_hedgehog,
    ),
    "taylor": FeatureMap(lambda size: 1 + size + size * size, _taylor, _build_taylor),
}
"""All maps by name."""
