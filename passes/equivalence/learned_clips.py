"""Both ends of every channel's range, learned: RepQuant's dual clipping.

What a channel x becomes in codes of n + 1 levels between its ends l and h is
`round((clip(x, l, h) - l) / s) s + l` with `s = (h - l) / n`. Rounding passes gradients on as they
are: a number beyond an end moves that end, one between them moves both by what rounding does to it.
Li et al., RepQuant, 2024, section 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_STEPS = 200
_RATE = 0.02
"""The first step of an end, in shares of the channel's range; falls by half a cosine."""
_BETAS = (0.9, 0.99)
_TINY = 1e-12


def learned_ends(rows: Array, low: Array, high: Array, bits: int) -> tuple[Array, Array]:
    """Returns the ends of the least squared error met on the way, channel by channel.

    Args:
        rows: f64[R, K].
        low: f64[K], where the lower ends begin.
        high: f64[K], where the upper ones do.
        bits: Of a code.
    """
    span = np.maximum(high - low, _TINY)
    ends = np.stack([low, high])
    best, least = ends.copy(), np.full(len(low), np.inf)
    mean, square = np.zeros_like(ends), np.zeros_like(ends)
    for count in range(1, _STEPS + 1):
        loss, slope = _loss_and_slope(rows, ends, 2**bits - 1)
        better = loss < least
        best[:, better], least[better] = ends[:, better], loss[better]
        slope *= span  # ends count in shares of the range
        mean += (1 - _BETAS[0]) * (slope - mean)
        square += (1 - _BETAS[1]) * (np.square(slope) - square)
        step = mean / (1 - _BETAS[0] ** count)
        step /= np.sqrt(square / (1 - _BETAS[1] ** count)) + _TINY
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * (count - 1) / _STEPS))
        ends = ends - rate * span * step
        ends[1] = np.maximum(ends[1], ends[0] + 1e-3 * span)
    return best[0], best[1]


def _loss_and_slope(rows: Array, ends: Array, levels: int) -> tuple[Array, Array]:
    """Returns the squared error of every channel, f64[K], and its slope by both ends, f64[2, K]."""
    low, high = ends
    scale = np.maximum(high - low, _TINY) / levels
    unit = (rows - low) / scale
    codes = np.clip(np.rint(unit), 0, levels)
    off = codes * scale + low - rows
    within = (unit >= 0) & (unit <= levels)
    turned = np.where(within, (codes - unit) / levels, 0.0)
    by_low = np.where(unit < 0, 1.0, -turned)
    by_high = np.where(unit > levels, 1.0, turned)
    slope = 2 * np.stack([(off * by_low).sum(0), (off * by_high).sum(0)])
    return np.square(off).sum(0), slope
