"""Rank correlation."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.errors import InputError

Array = np.ndarray[Any, Any]


def average_ranks(values: Array) -> Array:
    """Returns the rank of every value, f64[N] from 1; equal values share the mean of their ranks.

    Cost: O(N log N).
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    # the ranks last - count + 1 to last of a run of equal values have this mean
    mean = last - (counts - 1) / 2
    ranks: Array = mean[inverse.reshape(-1)]
    return ranks


def spearman(a: Array, b: Array) -> float:
    """Returns Spearman's rank correlation of two lists of numbers, f[N] each.

    It is Pearson's correlation of the average ranks, which is right with ties.

    Raises:
        InputError: For fewer than two pairs, or where one list has one value only, of which no
            correlation exists.
    """
    a, b = np.ravel(a), np.ravel(b)
    if a.size != b.size or a.size < 2:
        raise InputError(
            f"a rank correlation of {a.size} and {b.size} numbers",
            hint="it needs two lists of the same length, of two or more",
        )
    x, y = average_ranks(a), average_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    if norm == 0.0:
        raise InputError(
            "a rank correlation with a list of equal numbers does not exist",
            hint="give items that differ",
        )
    return float(x @ y) / norm
