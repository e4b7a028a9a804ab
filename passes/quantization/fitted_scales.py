"""Scales by least squares: of given codes, the ones whose products are closest.

Ranges are searched before a code is known. Once the codes are found, the best scales of all groups
of an output follow from one small system; then the codes can move again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded, Grid
from regraft.passes.quantization.formats import values_of

Array = np.ndarray[Any, Any]

_AT_ONCE = 1 << 23
"""Numbers of the systems that are in memory together."""
_RIDGE = 1e-6
"""Of the mean diagonal: groups whose codes are all zero have no best scale."""


def fitted_scales(matrix: Array, start: Encoded, moments: Array) -> Encoded:
    """Returns the same codes with the scales of the least error; zero points stay.

    Args:
        matrix: f32[K, N].
        start: Codes, in a grid whose scales are any f32.
        moments: f32[K, K], damped: the sum of x xᵀ over the rows x that were seen.

    Cost: O(N K²), as one sweep of `descended`.
    """
    grid, (size, width) = start.grid, matrix.shape
    num_groups = len(grid.scale)
    steps = values_of(grid.format, start.codes)
    if grid.zero_point is not None:
        steps -= np.repeat(grid.zero_point, grid.group, 0)[:size]
    edges = np.arange(0, size, grid.group)
    scale = grid.scale.copy()
    run = max(_AT_ONCE // num_groups**2, 1)
    for first in range(0, width, run):
        part = slice(first, min(first + run, width))
        unit = steps[:, part]
        wanted = np.add.reduceat(unit * (moments @ matrix[:, part]), edges).T
        system = np.empty((unit.shape[1], num_groups, num_groups))
        for idx, edge in enumerate(edges):
            own = slice(edge, edge + grid.group)
            pulled = unit[own].T @ moments[own]
            system[:, idx] = np.add.reduceat(pulled * unit.T, edges, axis=1)
        diagonal = np.einsum("ngg->ng", system)
        diagonal += _RIDGE * diagonal.mean(1, keepdims=True) + float(np.finfo(np.float32).tiny)
        found = np.linalg.solve(system, wanted[..., None])[..., 0].T
        # a scale of the other sign would turn the codes' order round
        scale[:, part] = np.where(found > 0, found, scale[:, part])
    return Encoded(Grid(grid.format, scale, grid.zero_point, grid.group), start.codes)
