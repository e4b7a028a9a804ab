"""Sequential attention: inputs of a layer chosen one after another by learned attention.

Yasuda et al., Sequential Attention for Feature Selection, 2023. Inputs that are not chosen yet are
scaled by a softmax of logits; logits and weights are trained together, the largest is chosen, and
the next phase begins. For linear regression that is Orthogonal Matching Pursuit. Everything is
computed from sums: `XᵀX` and `XᵀY`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_STEPS = 3
"""Updates per phase: the first moves weights by their correlations, the next ones the logits."""

_RATE = 0.05
_TINY = 1e-12


def selection_order(gram: Array, cross: Array, blocks: Array, count: int) -> list[int]:
    """Returns units in the order in which they are chosen.

    Args:
        gram: f64[K, K], XᵀX.
        cross: f64[K, N], XᵀY.
        blocks: i64[U, P], inputs of every unit.
        count: How many are chosen.
    """
    scale = np.sqrt(np.maximum(np.einsum("kk->k", gram), _TINY))
    left = gram / scale[:, None] / scale[None, :]
    lacking = cross / scale[:, None]
    # of what inputs carry beyond those chosen; those that carry nothing more cannot be
    free = np.ones(len(blocks), np.bool_)
    chosen: list[int] = []
    for _ in range(min(count, len(blocks))):
        logits = _attention(lacking, blocks, free)
        unit = int(np.argmax(np.where(free, logits, -np.inf)))
        chosen.append(unit)
        free[unit] = False
        for place in blocks[unit]:  # the weights of what is chosen are solved for
            own = left[place, place]
            if own <= _TINY:
                continue
            column = left[:, place].copy()
            lacking = lacking - np.outer(column, lacking[place]) / own
            left = left - np.outer(column, column) / own
    return chosen


def _attention(lacking: Array, blocks: Array, free: Array) -> Array:
    """Returns the logits of units after a phase of training from zero, f64[U].

    Updates are so small that what the weights of this phase explain does not count yet: the slope
    by an input's weight is its correlation with what is lacking, times its attention.
    """
    logits = np.zeros(len(blocks))
    weight = np.zeros_like(lacking)
    pull = max(float(np.square(lacking).sum()), _TINY)
    for _ in range(_STEPS):
        attention = _softmax(logits, free)
        scaled = np.zeros(len(lacking))
        scaled[blocks] = attention[:, None]
        by_unit = (weight * lacking).sum(1)[blocks].sum(1)
        weight = weight + scaled[:, None] * lacking
        moved = attention * (by_unit - float(attention @ by_unit))
        logits = logits + _RATE * len(blocks) ** 2 / pull * moved
    return logits


def _softmax(logits: Array, free: Array) -> Array:
    powers = np.where(free, np.exp(logits - logits.max()), 0.0)
    return np.asarray(powers / powers.sum())
