"""Coordinate descent on codes: each moves to where the others, as they are, want it.

GPTQ makes up for an error by what is rounded later only; a sweep lets every code answer to all
others. Nair and Suggala, CDQuant, 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded
from regraft.passes.quantization.formats import nearest, values_of

Array = np.ndarray[Any, Any]

_BLOCK = 64
"""Positions whose effect on the rest is made by one product."""


def descended(matrix: Array, start: Encoded, moments: Array, sweeps: int) -> Encoded:
    """Returns codes whose products are at least as close as those of `start`, in its grid.

    Args:
        matrix: f32[K, N].
        start: Codes to begin from.
        moments: f32[K, K], damped: the sum of x xᵀ over the rows x that were seen.
        sweeps: How often every position is looked at.
    """
    grid, size = start.grid, matrix.shape[0]
    hessian, diagonal = moments, np.einsum("kk->k", moments)
    value = start.decode()
    codes = start.codes.copy()
    pull = hessian @ (matrix - value)  # minus half the gradient
    for _ in range(sweeps):
        for first in range(0, size, _BLOCK):
            stop = min(first + _BLOCK, size)
            moved = np.zeros((stop - first, matrix.shape[1]), np.float32)
            local = pull[first:stop].copy()
            for idx in range(first, stop):
                scale, zero = grid.row(idx)
                wanted = value[idx] + local[idx - first] / diagonal[idx]
                code = nearest(grid.format, wanted / scale, zero)
                new = (values_of(grid.format, code) - zero) * scale
                moved[idx - first] = new - value[idx]
                codes[idx], value[idx] = code, new
                local -= np.outer(hessian[first:stop, idx], moved[idx - first])
            pull -= hessian[:, first:stop] @ moved
    return Encoded(grid, codes)
