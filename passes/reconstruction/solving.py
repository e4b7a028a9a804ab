"""Least squares for weights that lost inputs: closed forms over sums, with a ridge.

With `X` the inputs that are left, `R` what the result lacks of the target, both centred, the change
`D` of the weight makes `|X D - R|² + λ |D|²` least: `(XᵀX + λ) D = XᵀR`; the bias takes up what the
means lack. Where nothing before the layer changed, `R` is what the removed inputs gave, and this
is the update of the Optimal Brain Surgeon with `H = XᵀX + λ` (`obs_update`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, over the mean of the diagonal; held-out rows say which is best."""

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over rows of inputs x f[G, K] and of what is lacking r f[G, N].

    Args:
        count: Rows.
        x: f64[G, K].
        r: f64[G, N].
        xx: f64[G, K, K].
        xr: f64[G, K, N].
        rr: f64[G, N], sums of squares.
    """

    count: int
    x: Array
    r: Array
    xx: Array
    xr: Array
    rr: Array

    @staticmethod
    def of(x: Array, r: Array) -> Sums:
        """Returns the sums over rows f32[G, R, K] and f32[G, R, N]."""
        turned = np.swapaxes(x, 1, 2)
        return Sums(
            x.shape[1], x.sum(1, dtype=np.float64), r.sum(1, dtype=np.float64),
            (turned @ x).astype(np.float64), (turned @ r).astype(np.float64),
            np.square(r).sum(1, dtype=np.float64),
        )  # fmt: skip

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.x + other.x, self.r + other.r, self.xx + other.xx,
            self.xr + other.xr, self.rr + other.rr,
        )  # fmt: skip

    def solve(self, ridge: float, *, with_bias: bool) -> Change:
        """Returns the change that makes the error least.

        Args:
            ridge: How strongly weights stay, over the mean of the diagonal.
            with_bias: Whether a bias takes up what the means lack.
        """
        xx, xr = self.xx, self.xr
        if with_bias:
            mean_x, mean_r = self.x / self.count, self.r / self.count
            xx = xx - np.einsum("gk,gl->gkl", self.x, mean_x)
            xr = xr - np.einsum("gk,gn->gkn", self.x, mean_r)
        diagonal = np.einsum("gkk->gk", xx)
        strength = ridge * diagonal.mean(1) + _TINY
        eye = np.eye(xx.shape[1])
        weight = np.linalg.solve(xx + strength[:, None, None] * eye, xr)
        return Change(weight, self.shift(weight) if with_bias else None)

    def shift(self, weight: Array) -> Array:
        """Returns the bias f64[G, N] that goes with a change of the weight."""
        return np.asarray((self.r - np.einsum("gk,gkn->gn", self.x, weight)) / self.count)

    def error(self, change: Change) -> float:
        """Returns `|X D + b - R|²`, summed."""
        weight, bias = change.weight, change.bias
        error = float(self.rr.sum())
        error += float((weight * (self.xx @ weight - 2 * self.xr)).sum())
        if bias is not None:
            moved = np.einsum("gk,gkn->gn", self.x, weight) - self.r
            error += float((bias * (self.count * bias + 2 * moved)).sum())
        return max(error, 0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """What is added to a layer: a weight f64[G, K, N] and a bias f64[G, N], None for none."""

    weight: Array
    bias: Array | None


def best_change(fit: Sums, held_out: Sums | None, *, with_bias: bool, only_bias: bool) -> Change:
    """Returns the change, its ridge chosen by held-out rows.

    Args:
        fit: Sums of rows to fit.
        held_out: Sums of others; None takes the middle ridge.
        with_bias: Whether a bias is fitted.
        only_bias: Whether the weight stays as it is.
    """
    if only_bias:
        whole = fit if held_out is None else fit + held_out
        zero = np.zeros_like(whole.xr)
        return Change(zero, whole.shift(zero) if with_bias else None)
    if held_out is None:
        return fit.solve(STRENGTHS[len(STRENGTHS) // 2], with_bias=with_bias)
    errors = [held_out.error(fit.solve(each, with_bias=with_bias)) for each in STRENGTHS]
    best = STRENGTHS[int(np.argmin(errors))]
    return (fit + held_out).solve(best, with_bias=with_bias)


def obs_update(weight: Array, moments: Array, removed: Array) -> Array:
    """Returns a weight whose removed inputs are zero and whose others make up for them.

    The closed form of the Optimal Brain Surgeon for several inputs at once.

    Args:
        weight: f64[K, N].
        moments: f64[K, K], `XᵀX` with what is added to its diagonal.
        removed: i64[P], inputs that go.
    """
    inverse = np.linalg.inv(moments)
    block = inverse[np.ix_(removed, removed)]
    update = inverse[:, removed] @ np.linalg.solve(block, weight[removed])
    result = weight - update
    result[removed] = 0.0
    return np.asarray(result)


def obs_error(weight: Array, moments: Array, blocks: Array) -> Array:
    """Returns what every block of inputs costs when it alone goes and the others make up for it.

    Args:
        weight: f64[K, N].
        moments: f64[K, K], definite.
        blocks: i64[U, P], inputs of every unit.
    """
    inverse = np.linalg.inv(moments)
    inner = inverse[blocks[:, :, None], blocks[:, None, :]]
    rows = weight[blocks]
    return np.asarray((rows * np.linalg.solve(inner, rows)).sum((1, 2)))
