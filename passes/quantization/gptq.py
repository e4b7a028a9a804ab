"""GPTQ: rounding column by column, each error made up for by what is not rounded yet.

Frantar et al., GPTQ, 2022, algorithm 1, with groups whose scales are fixed before any column is
rounded ("static groups"), so that no runtime needs an index of groups. Positions are rounded in the
order of falling diagonal ("act-order").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.quantization.encoding import Encoded, Grid

Array = np.ndarray[Any, Any]

_BLOCK = 128
"""Columns whose updates of the rest are made by one product."""

_DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Fractions of the mean diagonal that are added to it, tried until the matrix is definite."""


@dataclass(frozen=True, slots=True)
class Curvature:
    """What inputs say of how rounding errors count; one for all layers that read the same value.

    Args:
        order: i64[K], positions in the order in which they are rounded.
        factor: f32[K, K], upper Cholesky factor of the inverse of the second moments, so ordered.
        importance: f64[K], what an error of a position costs once the others have made up for it
            as well as they can: 1 / diag of the inverse. Ranges are searched by it.
        damped: f32[K, K], the second moments with what was added to their diagonal.
    """

    order: Array
    factor: Array
    importance: Array
    damped: Array


def curvature(moments: Array) -> Curvature:
    """Returns what second moments f64[K, K], the sum of x xᵀ over rows x, say.

    Raises:
        numpy.linalg.LinAlgError: When no damping makes them definite, or they hold NaN or Inf.
    """
    order = np.argsort(-np.einsum("kk->k", moments), kind="stable")
    factor, fraction = inverse_factor(moments[np.ix_(order, order)])
    damped = moments.astype(np.float32)
    diagonal = np.einsum("kk->k", damped)
    diagonal[diagonal == 0] = 1.0
    diagonal += np.float32(fraction * diagonal.mean())
    importance = np.empty(len(order))
    # H⁻¹ = Uᵀ U of the upper factor U: its diagonal is the sum of squares of a column
    importance[order] = 1 / np.einsum("kn,kn->n", factor, factor)
    return Curvature(order, factor.astype(np.float32), importance, damped)


def inverse_factor(moments: Array) -> tuple[Array, float]:
    """Returns the upper Cholesky factor of the inverse of damped second moments, and the damping.

    Args:
        moments: f64[K, K], the sum of x xᵀ over rows x. Positions that never differ from 0 count
            as 1.

    Raises:
        numpy.linalg.LinAlgError: When no damping makes it definite, or it holds NaN or Inf.
    """
    if not np.isfinite(moments).all():
        raise np.linalg.LinAlgError("second moments hold NaN or Inf")
    matrix = moments.astype(np.float64, copy=True)
    diagonal = np.einsum("kk->k", matrix)
    diagonal[diagonal == 0] = 1.0
    mean = float(diagonal.mean())
    base = diagonal.copy()
    for fraction in _DAMPING:
        np.einsum("kk->k", matrix)[:] = base + fraction * mean
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            continue
        # chol(H⁻¹) upper: H = L Lᵀ gives H⁻¹ = L⁻ᵀ L⁻¹, whose upper factor comes by reversing
        inverse = np.linalg.inv(lower)
        whole = inverse.T @ inverse
        return np.linalg.cholesky(whole).T.copy(), fraction
    raise np.linalg.LinAlgError("no damping makes the second moments definite")


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
            code = np.clip(np.rint(rest[idx] / scale) + zero, fmt.low, fmt.high)
            codes[order[idx]] = code.astype(codes.dtype)
            error = (rest[idx] - (code - zero) * scale) / factor[idx, idx]
            rest[idx + 1 : stop] -= np.outer(factor[idx, idx + 1 : stop], error)
            errors[idx - start] = error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return Encoded(grid, codes)
