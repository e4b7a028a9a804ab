"""Scales of groups found from the weights alone: a few shrunk ranges, each with the best scale.

Codes that a shrunk range gives fix what scale loses least with them: sum(x q) / sum(q q), for codes
q less the zero point. Six such fits leave less error than the 26 ranges of `searched_grid`, of
which no scale is fitted, and take a quarter of the time; below 4 bits it takes ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Grid, grid_of, grouped
from regraft.passes.quantization.formats import Format

Array = np.ndarray[Any, Any]

_TINY = np.finfo(np.float32).tiny

_SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.68)
_SHRINKS_OF_FEW_CODES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6)
_FEW = 16
_MAX_GROUP, _MAX_GROUP_OF_BYTES = 32, 256
"""In wider groups ranges that far apart leave out the best one, and no scale makes up for that."""


def can_fit(fmt: Format, group: int) -> bool:
    """Returns whether `fitted_grid` is for a format in such groups."""
    widest = _MAX_GROUP if fmt.bits < 8 else _MAX_GROUP_OF_BYTES
    # of codes no larger than 1 the best range is often half of what there is
    return fmt.is_integer and fmt.high > 1 and 0 < group <= widest


def fitted_grid(matrix: Array, fmt: Format, group: int) -> Grid:
    """Returns the grid of least squared error among shrunk ranges whose scales are fitted.

    Args:
        matrix: f32[K, N].
        fmt: The integers.
        group: Positions of K that share a scale.
    """
    blocks = grouped(matrix, group)
    spans = grid_of(matrix, fmt, group)
    most = np.zeros(blocks.shape[::2], np.float32)
    scale = spans.scale
    zero = spans.zero_point
    codes, products = np.empty_like(blocks), np.empty_like(blocks)
    shrinks = _SHRINKS_OF_FEW_CODES if fmt.high - fmt.low + 1 < _FEW else _SHRINKS
    for shrink in shrinks:
        # a shrunk range has the zero point of the whole one
        np.divide(blocks, (spans.scale * np.float32(shrink))[:, None], out=codes)
        np.rint(codes, out=codes)
        if zero is None:
            np.clip(codes, fmt.low, fmt.high, out=codes)
        else:  # np.clip takes several times as long where its bounds are arrays
            np.maximum(codes, (fmt.low - zero)[:, None], out=codes)
            np.minimum(codes, (fmt.high - zero)[:, None], out=codes)
        along = np.multiply(codes, blocks, out=products).sum(1)
        length = np.multiply(codes, codes, out=products).sum(1)
        fitted = along / np.maximum(length, 1)  # codes are whole: none, or a sum of 1 and more
        # |x - s q|² = |x|² - s (x q) for the fitted s
        taken = along * fitted
        better = taken > most
        most = np.where(better, taken, most)
        scale = np.where(better, fitted, scale)
    return Grid(fmt, np.maximum(scale, _TINY), zero, group)
