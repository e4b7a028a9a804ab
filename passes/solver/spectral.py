"""How much of every layer may go, from the spectra of its weights alone (FARMS).

Well-trained layers have heavy-tailed spectra: the exponent of the tail is small. Tails are compared
at one aspect ratio, on windows of every matrix, because wide and square matrices have other
spectra even when they are random.

Source: Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias, 2025; Lu et
al., AlphaPruning, 2024, for the map from exponents to ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WINDOW = 256
"""Rows and columns of a window at most; the least side of the matrix where that is smaller."""

GRID = 4
"""Windows along each axis at most."""

SPREAD = 0.3
"""Ratios lie between one less and one more than this, before they are scaled to the budget."""

_TAIL = 0.5
_TINY = 1e-12


def tail_exponent(weight: Array, *, window: int = WINDOW, grid: int = GRID) -> float:
    """Returns the exponent of the spectrum's tail, by Hill's estimate on its upper half.

    Args:
        weight: f[out, in], or f[out, in, taps…]: every tap is a matrix of its own, and their
            spectra are one.
        window: Largest side of a window.
        grid: Windows along each axis.

    Cost: O(grid^2 * window^3) per tap.
    """
    array = np.asarray(weight, np.float64)
    array = array.reshape(array.shape[0], array.shape[1] if array.ndim > 1 else 1, -1)
    values = [
        np.square(np.linalg.svd(part, compute_uv=False))
        for tap in range(array.shape[2])
        for part in _windows(array[:, :, tap], window, grid)
    ]
    spectrum = np.sort(np.concatenate(values))
    spectrum = spectrum[spectrum > _TINY * max(float(spectrum[-1]), _TINY)]
    count = max(int(len(spectrum) * _TAIL), 1)
    if len(spectrum) < 2:
        return 1.0
    tail = spectrum[-count:]
    least = spectrum[-count - 1] if count < len(spectrum) else spectrum[0]
    total = float(np.log(tail / least).sum())
    return 1.0 + count / max(total, _TINY)


def _windows(matrix: Array, window: int, grid: int) -> Iterator[Array]:
    """Yields square windows on an even grid, which overlap where the matrix is not much larger."""
    side = min(window, *matrix.shape)
    places = [
        np.unique(np.linspace(0, size - side, min(grid, -(-size // side))).astype(np.int64))
        for size in matrix.shape
    ]
    for top in places[0]:
        for left in places[1]:
            yield matrix[top : top + side, left : left + side]


def spectral_weights(exponents: Sequence[float], *, spread: float = SPREAD) -> Array:
    """Returns how much goes of each layer, in proportion, f64[layers].

    The layer with the smallest exponent gives `1 - spread`, that with the largest `1 + spread`.
    """
    array = np.asarray(exponents, np.float64)
    low, high = float(array.min()), float(array.max())
    if high - low < _TINY:
        return np.ones(len(array))
    return 1 - spread + 2 * spread * (array - low) / (high - low)
