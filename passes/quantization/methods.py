"""How codes of a matrix are found, by name."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from regraft.passes.calibration.curvature import Curvature
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.quantization.descent import descended
from regraft.passes.quantization.encoding import (
    Encoded,
    grid_of,
    joined,
    round_to,
    runs_of_outputs,
    searched_grid,
)
from regraft.passes.quantization.fitted_grids import can_fit, fitted_grid
from regraft.passes.quantization.fitted_scales import fitted_scales
from regraft.passes.quantization.flexround import flexround
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.gptq import gptq
from regraft.passes.quantization.hqq import hqq

Array = np.ndarray[Any, Any]

_SWEEPS = 3
_RUN_BYTES = 1 << 24
"""Weights that GPTQ works on at a time, in f32; it holds half a dozen arrays of their size."""

_LARGE = 1 << 36
"""K² N of the largest layers that are worked on again and again (4,096 inputs and outputs): of
larger ones that takes minutes each, and one sweep has to do."""

_REFITS, _SWEEPS_AFTER = 2, 2
"""Scales are fitted and codes moved so many times: the error falls by 3 to 5 %, and by half a
percent at a third time."""

Method = Literal["round", "search", "hqq", "gptq", "flexround"]


def encode(
    matrix: Array,
    fmt: Format,
    group: int,
    method: Method,
    stats: Statistics | None,
    curved: Curvature | None = None,
) -> Encoded:
    """Returns the codes of a matrix.

    Args:
        matrix: f32[K, N].
        fmt: The integers.
        group: Positions of K that share a scale.
        method: `round` to nearest in full ranges, `search` of ranges weighted by what the inputs
            are (in small groups by fitted scales, where nothing is known of these), `hqq` from
            the weights alone, `gptq` in searched ranges, or `flexround`.
        stats: Of the inputs, where there are any.
        curved: What `gptq` and `flexround` need of them.
    """
    runs = runs_of_outputs(matrix.shape)
    # blocks of fp4 share a scale of the whole tensor
    if method in ("round", "search") and fmt.scales != "e4m3" and len(runs) > 1:
        return joined([encode(matrix[:, run], fmt, group, method, stats) for run in runs])
    if method == "round":
        return round_to(matrix, grid_of(matrix, fmt, group))
    if method == "search" and stats is None and can_fit(fmt, group):
        return round_to(matrix, fitted_grid(matrix, fmt, group))
    if method == "search":
        importance = None if stats is None else stats.mean_square
        return round_to(matrix, searched_grid(matrix, fmt, group, importance))
    if method == "hqq":
        return hqq(matrix, fmt, group)
    if curved is None:
        raise AssertionError(f"{method} needs second moments")
    if method == "flexround":
        found = searched_grid(matrix, fmt, group, curved.importance)
        return flexround(matrix, fmt, group, curved.damped, start=found)
    if fmt.scales == "e4m3":  # blocks of fp4 share a scale of the whole tensor
        return _adapted(matrix, fmt, group, curved, is_large=False)
    is_large = matrix.shape[0] ** 2 * matrix.shape[1] > _LARGE
    step = max(_RUN_BYTES // (4 * matrix.shape[0]), 1)
    parts = [
        _adapted(
            np.ascontiguousarray(matrix[:, first : first + step]), fmt, group, curved,
            is_large=is_large,
        )
        for first in range(0, matrix.shape[1], step)
    ]  # fmt: skip
    return joined(parts) if len(parts) > 1 else parts[0]


def _adapted(
    matrix: Array, fmt: Format, group: int, curved: Curvature, *, is_large: bool
) -> Encoded:
    """Returns codes by GPTQ, moved until they agree with each other and with their scales."""
    # by the mean square alone, the error that remains on a sentence encoder is a tenth larger
    greedy = gptq(matrix, searched_grid(matrix, fmt, group, curved.importance), curved)
    if is_large:
        return descended(matrix, greedy, curved.damped, 1)
    encoded = descended(matrix, greedy, curved.damped, _SWEEPS)
    if fmt.scales != "f32":  # powers of two and f8 cannot follow
        return encoded
    for _ in range(_REFITS):
        fitted = fitted_scales(matrix, encoded, curved.damped)
        encoded = descended(matrix, fitted, curved.damped, _SWEEPS_AFTER)
    return encoded
