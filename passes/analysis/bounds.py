"""Bounds of an array: what every element is proven to lie between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.graph import Node

Array = np.ndarray[Any, Any]

EPS = 2.0**-23
"""Of f32, which runtimes compute in: sums of n terms are off by at most n of these, each of the
sum of absolute values."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """The least and the largest an element may be, f64, broadcasting to the value's shape."""

    low: Array
    high: Array

    @property
    def magnitude(self) -> Array:
        """The largest absolute value."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def over(self, axes: tuple[int, ...] | None = None) -> Bounds:
        """Returns bounds that hold along axes (default: all), which keep size 1."""
        return Bounds(
            np.asarray(self.low.min(axes, keepdims=True)),
            np.asarray(self.high.max(axes, keepdims=True)),
        )

    def join(self, other: Bounds) -> Bounds:
        """Returns what bounds both."""
        return Bounds(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def meet(self, other: Bounds) -> Bounds:
        """Returns what both say, of one value."""
        return Bounds(np.maximum(self.low, other.low), np.minimum(self.high, other.high))


def unbounded(rank: int | None) -> Bounds:
    """Returns the bounds of a value of which nothing is known."""
    shape = (1,) * (rank or 0)
    return Bounds(np.full(shape, -np.inf), np.full(shape, np.inf))


def between(low: float, high: float, rank: int | None) -> Bounds:
    """Returns the same bounds for every element."""
    shape = (1,) * (rank or 0)
    return Bounds(np.full(shape, low), np.full(shape, high))


Operands = Sequence[Bounds | None]
IntervalRule = Callable[[Node, Operands], Bounds | None]
"""Takes a node and the bounds of its operands to those of its first result; None knows nothing."""


def needed(operands: Operands, idx: int) -> Bounds:
    """Returns the bounds of an operand that is there."""
    found = operands[idx]
    assert found is not None, f"operand {idx} is there"
    return found


def hull(ends: Sequence[Array]) -> Bounds:
    """Returns what bounds all of some arrays."""
    return Bounds(np.minimum.reduce(ends), np.maximum.reduce(ends))


def times(a: Array, b: Array) -> Array:
    """Returns a product in which zero times anything is zero: elements are finite."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def at_rank(x: Bounds, rank: int) -> Bounds:
    """Returns the bounds with leading axes added."""
    shape = (1,) * (rank - x.low.ndim)
    return Bounds(x.low.reshape(*shape, *x.low.shape), x.high.reshape(*shape, *x.high.shape))


def widened(x: Bounds, times_eps: int = 1) -> Bounds:
    """Returns bounds that hold after rounding a few times more; zero stays zero."""
    slack = np.where(np.isinf(x.magnitude), 0.0, times_eps * EPS * x.magnitude)
    return Bounds(x.low - slack, x.high + slack)
