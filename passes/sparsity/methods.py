"""One layer made sparse, by any method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from regraft.passes.calibration.curvature import inverse_factor
from regraft.passes.calibration.moments import Moments
from regraft.passes.sparsity.masks import (
    Pattern,
    Scope,
    kept_in_groups,
    kept_of_all,
    magnitude,
    wanda,
)
from regraft.passes.sparsity.sparsegpt import sparsegpt

Array = np.ndarray[Any, Any]
Method = Literal["magnitude", "wanda", "sparsegpt"]


@dataclass(slots=True, eq=False)
class Layer:
    """A stack of matrices with what its inputs were.

    Args:
        name: Of the weight.
        stack: f32[E, K, N].
        moments: Of the inputs, None for methods that look at none.
    """

    name: str
    stack: Array
    moments: Moments | None = None
    _factors: list[Array] = field(default_factory=list)

    def factors(self) -> list[Array]:
        """Returns the inverse factor of each matrix's inputs, computed once."""
        if not self._factors and self.moments is not None:
            self._factors = [inverse_factor(second)[0] for second in self.moments.second]
        return self._factors

    def error(self, after: Array) -> float:
        """Returns the relative error of the results; of the weights where no inputs were seen."""
        if self.moments is not None:
            return self.moments.error(self.stack, after)
        scale = float(np.square(self.stack).sum())
        return float(np.sqrt(np.square(after - self.stack).sum() / scale)) if scale else 0.0


def scores(layer: Layer, method: Method) -> Array:
    """Returns what every number counts for, f32[E, K, N]; of `sparsegpt`, before any update."""
    if method == "magnitude":
        return magnitude(layer.stack)
    if layer.moments is None:
        raise AssertionError(f"`{method}` needs moments")
    if method == "wanda":
        return wanda(layer.stack, layer.moments.mean_square)
    diagonals = np.stack([np.einsum("kk->k", factor) for factor in layer.factors()])
    found: Array = np.abs(layer.stack) / diagonals[:, :, None]
    return found


def sparse(
    layer: Layer, method: Method, pattern: Pattern, rate: float, scope: Scope = "layer"
) -> Array:
    """Returns the sparse stack, f32[E, K, N].

    Args:
        layer: The layer.
        method: How numbers are chosen, and whether the rest makes up for them.
        pattern: `N:M`, or any.
        rate: Fraction that goes, without `N:M`.
        scope: What scores compare within, of `magnitude` and `wanda` without `N:M`.
    """
    if method == "sparsegpt":
        factors = layer.factors()
        return np.stack(
            [
                sparsegpt(matrix, factors[idx % len(factors)], pattern, rate)
                for idx, matrix in enumerate(layer.stack)
            ]
        )
    found = scores(layer, method)
    mask = kept_in_groups(found, pattern) if pattern.group else kept_of_all(found, rate, scope)
    return np.where(mask, layer.stack, np.float32(0))
