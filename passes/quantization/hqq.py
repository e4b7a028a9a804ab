"""Half-quadratic quantization: scales from the weights alone, few large errors let be.

Minimizes the sum of `|W - s (q - z)| ** 0.7` over the scale of every group by turns: the errors
that stay are shrunk towards 0 and set aside, the scale is the least-squares one for the rest, codes
are rounded anew. Badri and Shaji, Half-Quadratic Quantization, 2023, with the scale in place of the
zero point, which stays a whole number: kernels take no other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded, Grid, grid_of, grouped, round_to
from regraft.passes.quantization.formats import Format, values_of

Array = np.ndarray[Any, Any]

_NORM = 0.7
_ROUNDS = 20
_BETA = 10.0
_GROWTH = 1.01
_TINY = 1e-12


def hqq(matrix: Array, fmt: Format, group: int) -> Encoded:
    """Returns codes of a matrix f32[K, N], no worse than the nearest in full ranges.

    Args:
        matrix: The weights.
        fmt: Their format; scales are f32.
        group: Positions of K that share a scale.
    """
    start = grid_of(matrix, fmt, group)
    best = round_to(matrix, start)
    if fmt.scales != "f32":
        return best
    least = _loss(matrix, best)
    blocks = grouped(matrix, group)
    zero = 0.0 if start.zero_point is None else start.zero_point[:, None]
    found, beta = best, _BETA
    # errors are measured in steps: what is large does not depend on how large weights are
    for _ in range(_ROUNDS):
        values = grouped(values_of(fmt, found.codes), group) - zero
        scale = found.grid.scale[:, None]
        error = (blocks - values * scale) / scale
        size = np.abs(error)
        kept = np.sign(error) * np.maximum(size - (size + _TINY) ** (_NORM - 1) / beta, 0) * scale
        top = np.einsum("gkn,gkn->gn", blocks - kept, values)
        bottom = np.einsum("gkn,gkn->gn", values, values)
        moved = np.where((bottom > 0) & (top > 0), top / np.maximum(bottom, _TINY), scale[:, 0])
        grid = Grid(fmt, moved.astype(np.float32), start.zero_point, group)
        found = round_to(matrix, grid)
        loss = _loss(matrix, found)
        if loss < least:
            best, least = found, loss
        beta *= _GROWTH
    return best


def _loss(matrix: Array, found: Encoded) -> float:
    return float((np.abs(found.decode() - matrix) ** _NORM).sum())
