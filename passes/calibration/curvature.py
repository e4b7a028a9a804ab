"""What second moments of inputs say of errors in weights: inverse factors, damped.

Rounding (GPTQ) and pruning (OBS, SparseGPT) of weights read the same matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

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
    lower, fraction = _damped_factor(moments)
    # of wide layers each of these is a gigabyte: no more than two at a time
    inverse = np.linalg.inv(lower)
    del lower
    whole = inverse.T @ inverse  # H = L Lᵀ gives H⁻¹ = L⁻ᵀ L⁻¹
    del inverse
    upper = np.linalg.cholesky(whole).T
    del whole
    return np.ascontiguousarray(upper), fraction


def _damped_factor(moments: Array) -> tuple[Array, float]:
    """Returns the lower Cholesky factor of damped second moments, and the damping."""
    matrix = moments.astype(np.float64, copy=True)
    diagonal = np.einsum("kk->k", matrix)
    diagonal[diagonal == 0] = 1.0
    mean = float(diagonal.mean())
    base = diagonal.copy()
    for fraction in _DAMPING:
        np.einsum("kk->k", matrix)[:] = base + fraction * mean
        try:
            return np.linalg.cholesky(matrix), fraction
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("no damping makes the second moments definite")
