"""GPTQ: rounding column by column, each error made up for by what is not rounded yet.

Frantar et al., GPTQ, 2022, algorithm 1, with groups whose scales are fixed before any column is
rounded ("static groups"), so that no runtime needs an index of groups. Positions are rounded in the
order of falling diagonal ("act-order").
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.calibration.curvature import Curvature
from regraft.passes.quantization.encoding import Encoded, Grid
from regraft.passes.quantization.formats import nearest, values_of

Array = np.ndarray[Any, Any]

_BLOCK = 128
"""Columns whose updates of the rest are made by one product."""


def gptq(matrix: Array, grid: Grid, found: Curvature) -> Encoded:
    """Returns the codes that keep the product with the seen rows closest, greedily.

    Args:
        matrix: f32[K, N].
        grid: Scales and zero points, which stay.
        found: Of the rows that were seen.
    """
    size = matrix.shape[0]
    order, factor = found.order, found.factor
    rest = matrix[order].astype(np.float32)
    codes = np.empty(matrix.shape, np.uint8 if grid.format.low == 0 else np.int8)
    fmt = grid.format
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((stop - start, matrix.shape[1]), np.float32)
        for idx in range(start, stop):
            scale, zero = grid.row(int(order[idx]))
            code = nearest(fmt, rest[idx] / scale, zero)
            codes[order[idx]] = code
            error = (rest[idx] - (values_of(fmt, code) - zero) * scale) / factor[idx, idx]
            rest[idx + 1 : stop] -= np.outer(factor[idx, idx + 1 : stop], error)
            errors[idx - start] = error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return Encoded(grid, codes)
