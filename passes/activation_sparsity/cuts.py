"""Which entries of a value go: by rank within a row, or below thresholds found on samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical, reduce, selecting

Array = np.ndarray[Any, Any]

_MAX_NUMBERS = 1 << 22
"""Scores that a threshold is found on."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Entries `i` whose score `|x_i| * weight_i` is low become zero.

    Args:
        weights: f32[K], positive.
        kept: How many stay in every row; 0 where a threshold says it.
        threshold: Scores up to this go.
    """

    weights: Array
    kept: int = 0
    threshold: float = 0.0

    def apply(self, x: Array) -> Array:
        """Returns f[..., K] with zeros."""
        score = np.abs(x) * self.weights
        if not self.kept:
            return np.where(score > np.float32(self.threshold), x, 0)
        least = np.partition(score, -self.kept, axis=-1)[..., -self.kept, None]
        return np.where(score >= least, x, 0)


def write_cut(b: Builder, x: Value, cut: Cut) -> Value:
    """Returns `x` with zeros: standard operators, which kernels that skip zeros may look for."""
    dtype = x.dtype
    assert dtype is not None, "what is calibrated has a type"
    score = b.op(arithmetic.abs_, x)
    if (cut.weights != 1).any():
        score = b.op(arithmetic.mul, score, b.constant(cut.weights, dtype))
    if cut.kept:
        best = b.multi(selecting.top_k, score, k=cut.kept, axis=-1)[0]
        least = b.op(reduce.reduce_min, best, axes=(-1,), keepdims=True)
        mask = b.op(logical.greater_or_equal, score, least)
    else:
        mask = b.op(logical.greater, score, b.constant(np.asarray(cut.threshold), dtype))
    return b.op(logical.where, mask, x, b.constant(np.asarray(0.0), dtype))


def threshold_of(scores: list[Array], rate: float) -> float:
    """Returns the score up to which a fraction of all goes.

    Args:
        scores: f[..., K], of samples.
        rate: The fraction.
    """
    every = np.concatenate([each.ravel() for each in scores])
    every = every[:: -(-every.size // _MAX_NUMBERS)]
    place = round(rate * every.size)
    if place == 0:
        return -1.0  # scores are not negative: nothing goes
    return float(np.partition(every, place - 1)[place - 1])
