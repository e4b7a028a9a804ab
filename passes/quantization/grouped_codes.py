"""GPTQ of many small matrices at once: convolutions in groups, depthwise ones most of all.

The taps of a depthwise kernel read almost the same number, so that what counts is that the errors
of nine codes add up to nothing. All groups are rounded side by side, tap by tap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded, Grid
from regraft.passes.quantization.formats import nearest, values_of

Array = np.ndarray[Any, Any]

_DAMPING = 0.01
_SWEEPS = 4


def grouped_codes(matrix: Array, grid: Grid, moments: Array) -> Encoded:
    """Returns the codes that keep the products of every group with what was seen closest, greedily.

    Args:
        matrix: f32[K, N], outputs of a group side by side.
        grid: One scale per output, which stays.
        moments: f64[G, K, K] of what each group sums over.
    """
    size, width = matrix.shape
    groups = len(moments)
    diagonal = np.einsum("gkk->gk", moments)
    level = np.maximum(diagonal.mean(1, keepdims=True), 1e-30)
    damped = moments + np.eye(size) * (_DAMPING * level)[:, :, None]
    # H = L Lᵀ, so that H⁻¹ = L⁻ᵀ L⁻¹; the upper factor U of H⁻¹ = Uᵀ U is that of its own Cholesky
    factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    scale = grid.scale[0].reshape(groups, -1)
    wanted = matrix.T.reshape(groups, width // groups, size).astype(np.float64)
    rest, codes = wanted.copy(), np.empty(wanted.shape, np.int8)
    for idx in range(size):
        code = nearest(grid.format, rest[..., idx] / scale, 0.0)
        codes[..., idx] = code
        error = (rest[..., idx] - values_of(grid.format, code) * scale) / factor[:, idx, None, idx]
        rest[..., idx:] -= error[..., None] * factor[:, None, idx, idx:]
    for _ in range(_SWEEPS):  # every code then moves to where the others want it
        for idx in range(size):
            value = values_of(grid.format, codes) * scale[..., None]
            pull = np.einsum("gnk,gk->gn", wanted - value, damped[:, idx])
            moved = value[..., idx] + pull / damped[:, idx, None, idx]
            codes[..., idx] = nearest(grid.format, moved / scale, 0.0)
    return Encoded(grid, np.ascontiguousarray(codes.reshape(width, size).T))
