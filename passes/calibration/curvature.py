"""What second moments of inputs say of errors in weights: inverse factors, damped.

Rounding (GPTQ) and pruning (OBS, SparseGPT) of weights read the same matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import lapack

from regraft.ir.errors import UsageError

Array = np.ndarray[Any, Any]

_DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Fractions of the mean diagonal that are added to it, tried until the matrix is definite."""

_HINT = "scale the numbers, or choose a method that needs no second moments, such as method=search"

WIDE = 6144
"""Beyond so many positions second moments are f32: of 11,008 they are half a gigabyte, and the
damping of 1 % is far above what is rounded."""


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


def curvature(moments: Array, *, overwrite: bool = False) -> Curvature:
    """Returns what second moments, the sum of x xᵀ over rows x, say.

    Args:
        moments: f64[K, K] or f32[K, K]; f32 is factored in f32.
        overwrite: Whether `damped` may lie where the moments were. No more than two matrices
            of K x K numbers are in memory then.

    Raises:
        UsageError: When no damping makes them definite, or they hold NaN or Inf.
    """
    order = np.argsort(-np.einsum("kk->k", moments), kind="stable")
    factor, fraction = _ordered_factor(moments, order)
    damped = moments.astype(np.float32, copy=not overwrite)
    diagonal = np.einsum("kk->k", damped)
    diagonal[diagonal == 0] = 1.0
    diagonal += np.float32(fraction * diagonal.mean(dtype=np.float64))
    importance = np.empty(len(order))
    # H⁻¹ = Uᵀ U of the upper factor U: its diagonal is the sum of squares of a column
    importance[order] = 1 / np.einsum("kn,kn->n", factor, factor)
    return Curvature(order, factor.astype(np.float32, copy=False), importance, damped)


def inverse_factor(moments: Array) -> tuple[Array, float]:
    """Returns the upper Cholesky factor of the inverse of damped second moments, and the damping.

    Args:
        moments: f64[K, K] or f32[K, K], the sum of x xᵀ over rows x. Positions that never differ
            from 0 count as 1.

    Raises:
        UsageError: When no damping makes it definite, or it holds NaN or Inf.
    """
    return _ordered_factor(moments, np.arange(len(moments)))


def _ordered_factor(moments: Array, order: Array) -> tuple[Array, float]:
    """Returns the factor of the moments in an order of positions, of their type, and the damping.

    With the positions turned round, P H P = L Lᵀ; then H = (P L P) (P L P)ᵀ, and the inverse of
    the upper P L P is the factor: one Cholesky and one inverse of a triangle, both in place.
    """
    diagonal = np.einsum("kk->k", moments).astype(np.float64)
    if not np.isfinite(diagonal).all():
        raise UsageError(
            "second moments of what layers read are beyond f32: numbers on samples are too large",
            hint=_HINT,
        )
    diagonal[diagonal == 0] = 1.0
    mean, turned = float(diagonal.mean()), order[::-1]
    potrf, trtri = (
        (lapack.spotrf, lapack.strtri)
        if moments.dtype == np.float32
        else (lapack.dpotrf, lapack.dtrtri)
    )
    for fraction in _DAMPING:
        work = moments[turned[:, None], turned]
        np.einsum("kk->k", work)[:] = diagonal[turned] + fraction * mean
        # LAPACK counts by columns: its upper triangle is the lower one here
        _, failed = potrf(work.T, lower=0, clean=1, overwrite_a=1)
        if not failed:
            _, failed = trtri(work.T, lower=0, overwrite_c=1)
        if not failed and np.isfinite(np.einsum("kk->k", work)).all():
            _turn_round(work)
            return work, fraction
        del work
    raise UsageError(
        "no damping makes the second moments of what layers read definite: the numbers on samples "
        "are too large or too small for f32",
        hint=_HINT,
    )


def _turn_round(matrix: Array) -> None:
    """Reverses the order of rows and columns, in place."""
    size = len(matrix)
    for idx in range((size + 1) // 2):
        row = matrix[idx, ::-1].copy()
        matrix[idx] = matrix[size - 1 - idx, ::-1].copy()
        matrix[size - 1 - idx] = row
