"""Inputs of a linear layer whose weights are in 8 bits, so that they make up for the others.

The errors of weights in few bits show in the products as far as the inputs in 8 bits cannot say
what they say: of inputs x = (a, b) with second moments H, and any error E of the weights of a, the
best weights of b change by H_bb⁻¹ H_ba E, and what remains is Eᵀ (H_aa - H_ab H_bb⁻¹ H_ba) E. The
codes of a are found by that remainder, and then b takes over what it can. Inputs are chosen as a
pivoted Cholesky factorization does: each time the one that those before it say least of. After Lee
et al., OWQ, 2024, which keeps such inputs in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.calibration.curvature import Curvature, curvature
from regraft.passes.quantization.encoding import Encoded, grid_of, round_to
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.methods import encode

Array = np.ndarray[Any, Any]

INPUT_STEP = 32
"""Inputs that change format together: kernels and groups take as many at once."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitInputs:
    """A matrix f32[K, N] some of whose rows are in 8 bits.

    Args:
        chosen: bool[K], those in 8 bits.
        low: The others, in their order.
        high: These, in their order.
    """

    chosen: Array
    low: Encoded
    high: Encoded

    def decode(self) -> Array:
        """Returns f32[K, N]."""
        found = np.empty((len(self.chosen), self.low.codes.shape[1]), np.float32)
        found[~self.chosen], found[self.chosen] = self.low.decode(), self.high.decode()
        return found


def input_order(found: Curvature, count: int) -> Array:
    """Returns inputs i64[count], each the one that those before it say least of.

    Cost: O(K count²).
    """
    size = len(found.damped)
    left = np.einsum("kk->k", found.damped).astype(np.float64)
    factor = np.zeros((size, count))
    order = np.empty(count, np.int64)
    for idx in range(count):
        best = int(np.argmax(left))
        order[idx] = best
        column = found.damped[:, best] - factor[:, :idx] @ factor[best, :idx]
        factor[:, idx] = column / np.sqrt(left[best])
        left = np.maximum(left - np.square(factor[:, idx]), 0)
        left[order[: idx + 1]] = -1
    return order


def split_inputs(
    matrix: Array, chosen: Array, formats: tuple[Format, Format], group: int, found: Curvature
) -> SplitInputs:
    """Returns the codes of a matrix, those of the chosen inputs in the second format.

    Args:
        matrix: f32[K, N].
        chosen: bool[K].
        formats: Of the other inputs, whose codes GPTQ finds, and of these.
        group: Inputs of one format that share a scale.
        found: Of the rows that were seen.
    """
    low, high = formats
    main, rest = matrix[~chosen], matrix[chosen]
    moments = found.damped.astype(np.float64)
    across = moments[np.ix_(chosen, ~chosen)]
    taken = np.linalg.solve(moments[np.ix_(chosen, chosen)], across)
    remains = moments[np.ix_(~chosen, ~chosen)] - across.T @ taken
    first = encode(main, low, group, "gptq", None, curvature((remains + remains.T) / 2))
    rest = rest + (taken @ (main - first.decode())).astype(np.float32)
    return SplitInputs(chosen, first, round_to(rest, grid_of(rest, high, group)))
