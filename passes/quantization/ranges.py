"""Ranges of activations: one scale and zero point for all channels but a float tail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.calibration.statistics import Statistics
from regraft.passes.quantization.formats import UINT8

Array = np.ndarray[Any, Any]

_TINY = float(np.finfo(np.float32).tiny)

_SHRINKS = np.linspace(1.0, 0.4, 25)


@dataclass(frozen=True, slots=True)
class Range:
    """`x = scale * (code - zero_point)`, codes of 8 bits without sign."""

    scale: np.float32
    zero_point: np.uint8


def range_of(low: float, high: float) -> Range:
    """Returns the range that spans low to high, 0 included."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / UINT8.high, _TINY))
    return Range(scale, np.uint8(np.clip(np.rint(-low / scale), 0, UINT8.high)))


def rounded(rows: Array, found: Range) -> Array:
    """Returns the rows as the range holds them."""
    codes = np.clip(np.rint(rows / found.scale) + np.float32(found.zero_point), 0, UINT8.high)
    return (codes - np.float32(found.zero_point)) * found.scale


def searched_range(stats: Statistics, channels: Array, factor: Array, weight: Array) -> Range:
    """Returns the range of least error in what the products read, among shrunk ones.

    Args:
        stats: Of the value.
        channels: bool[K], those that the range is for.
        factor: f32[K], what the value is multiplied by before it is rounded.
        weight: f64[K], how much an error of each channel counts: the mean square of its weights.
    """
    rows = stats.sample()[:, channels] * factor[channels]
    low = float((stats.low * factor)[channels].min(initial=0))
    high = float((stats.high * factor)[channels].max(initial=0))
    counts = weight[channels].astype(np.float32)
    best, least = range_of(low, high), np.inf
    for shrink in _SHRINKS:
        candidate = range_of(low * shrink, high * shrink)
        error = rounded(rows, candidate) - rows
        loss = float(np.einsum("rk,rk,k->", error, error, counts, optimize=True))
        if loss < least:
            best, least = candidate, loss
    return best


def tail_channels(stats: Statistics, size: int, factor: Array) -> Array:
    """Returns the channels that stay in float, i64[size]: those that stretch the range most.

    Args:
        stats: Of the value.
        size: How many.
        factor: f32[K], what the value is multiplied by before it is rounded.
    """
    reach = stats.top * factor
    return np.sort(np.argsort(-reach, kind="stable")[:size])


def smoothing(stats: Statistics, strength: float) -> Array:
    """Returns what each channel is multiplied by so that large ones need less range, f32[K].

    (median / largest absolute value) ** strength, at most 1: only channels above the median are
    made smaller. After SmoothQuant (Xiao et al., 2023, eq. 4) without the weights' term.
    """
    top = np.maximum(stats.top.astype(np.float64), 1e-12)
    ratio = np.median(top) / top
    factor: Array = np.minimum(ratio**strength, 1.0).astype(np.float32)
    return factor
