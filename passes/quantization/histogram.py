"""Histograms of values that stream by, and the range of 8 bits that each criterion takes of one.

Memory is one row of counts per value, however many samples there are: where a value leaves the
range, neighbouring counts are added and the range doubles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from regraft.passes.quantization.ranges import Range, range_of

Array = np.ndarray[Any, Any]

Criterion = Literal["minmax", "percentile", "mse", "entropy"]

_BINS = 2048
"""Eight per code: a range is found to an eighth of a step."""

_PERCENTILE = 0.9999
_SHRINKS = np.linspace(1.0, 0.3, 36)
_LEVELS = 255


@dataclass(slots=True)
class Histogram:
    """Counts of values between `-top` and `top`, in equal steps.

    Attributes:
        low: Least value seen.
        high: Largest value seen.
        top: Half the length of the range; 0 before anything but zeros was seen.
        counts: f64[bins].
    """

    low: float = 0.0
    high: float = 0.0
    top: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(_BINS))

    def update(self, values: Array) -> None:
        """Takes in values of any shape."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        most = max(-low, high)
        if most == 0 and self.top == 0:
            self.counts[_BINS // 2] += flat.size
            return
        if self.top == 0:
            self.top = most
        while most > self.top:
            self._double()
        # np.histogram sorts; a product and bincount take a third of the time
        idx = ((flat + np.float32(self.top)) * np.float32(_BINS / (2 * self.top))).astype(np.int32)
        np.clip(idx, 0, _BINS - 1, out=idx)
        self.counts += np.bincount(idx, minlength=_BINS)

    def _double(self) -> None:
        """Halves the resolution: the old range becomes the middle of a range twice as long."""
        joined = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros(_BINS)
        self.counts[_BINS // 4 : _BINS // 4 + _BINS // 2] = joined
        self.top *= 2

    @property
    def centres(self) -> Array:
        """Middle of every step, f64[bins]."""
        return (np.arange(_BINS) + 0.5) * (2 * self.top / _BINS) - self.top


def range_by(found: Histogram, criterion: Criterion) -> Range:
    """Returns the range of 8 bits without sign that a criterion takes."""
    if criterion == "minmax" or found.top == 0:
        return range_of(found.low, found.high)
    if criterion == "percentile":
        return _percentile(found)
    loss = _square if criterion == "mse" else _divergence
    best, least = range_of(found.low, found.high), np.inf
    for shrink in _SHRINKS:
        candidate = range_of(found.low * float(shrink), found.high * float(shrink))
        error = loss(found, candidate)
        if error < least:
            best, least = candidate, error
    return best


def _percentile(found: Histogram) -> Range:
    """The range without the largest and the least of ten thousand values."""
    shares = np.cumsum(found.counts) / max(found.counts.sum(), 1)
    edges = np.linspace(-found.top, found.top, _BINS + 1)
    low = edges[int(np.searchsorted(shares, 1 - _PERCENTILE))]
    high = edges[int(np.searchsorted(shares, _PERCENTILE)) + 1]
    return range_of(max(float(low), found.low), min(float(high), found.high))


def _codes(found: Histogram, candidate: Range) -> tuple[Array, Array]:
    centres = found.centres
    codes = np.rint(centres / candidate.scale) + float(candidate.zero_point)
    return centres, np.clip(codes, 0, _LEVELS)


def _square(found: Histogram, candidate: Range) -> float:
    centres, codes = _codes(found, candidate)
    error = (codes - float(candidate.zero_point)) * float(candidate.scale) - centres
    return float(np.dot(found.counts, np.square(error)))


def _divergence(found: Histogram, candidate: Range) -> float:
    """Kullback-Leibler divergence of the counts from what the codes tell of them.

    What a code stands for is spread evenly over the steps it takes in that hold anything; what the
    range cuts off lands on its ends, as the codes do.
    """
    _, codes = _codes(found, candidate)
    place = codes.astype(np.int64)
    seen = found.counts > 0
    per_code = np.bincount(place, weights=found.counts, minlength=_LEVELS + 1)
    width = np.bincount(place, weights=seen, minlength=_LEVELS + 1)
    told = np.where(seen, per_code[place] / np.maximum(width[place], 1), 0.0)
    total = found.counts.sum()
    p, q = found.counts[seen] / total, told[seen] / total
    return float(np.sum(p * np.log(p / q)))
