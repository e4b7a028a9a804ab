"""Which numbers of a matrix stay: patterns, and scores by magnitude and by what inputs carry.

Matrices are f[E, K, N]: K inputs are summed into each of N outputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regraft.ir.errors import UsageError

Array = np.ndarray[Any, Any]
Scope = Literal["layer", "output"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """`keep` of every `group` consecutive inputs of an output stay; without a group, any.

    Args:
        keep: Numbers that stay in a group; 0 without one.
        group: Inputs of a group; 0 for none.
    """

    keep: int = 0
    group: int = 0

    @property
    def density(self) -> float:
        """Fraction that stays; 1 without a group, where a rate says it."""
        return self.keep / self.group if self.group else 1.0


def pattern_of(text: str) -> Pattern:
    """Returns the pattern of `unstructured` or of `N:M`, N of M consecutive numbers stay.

    Raises:
        UsageError: For anything else.
    """
    if text == "unstructured":
        return Pattern()
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UsageError(
            f"pass `sparsify`, option `pattern`: `{text}` is no pattern",
            hint="write `unstructured`, or N:M for N of M consecutive numbers, such as 2:4",
        )
    return Pattern(int(match[1]), int(match[2]))


def magnitude(stack: Array) -> Array:
    """Returns |w|, f32[E, K, N]."""
    return np.abs(stack)


def wanda(stack: Array, mean_square: Array) -> Array:
    """Returns |w| times the norm of the input it multiplies, f32[E, K, N].

    Source: Sun et al., Wanda, 2023, eq. 1.

    Args:
        stack: f32[E, K, N].
        mean_square: f64[E or 1, K], of the inputs.
    """
    return np.abs(stack) * np.sqrt(mean_square)[:, :, None].astype(np.float32)


def kept_in_groups(scores: Array, pattern: Pattern) -> Array:
    """Returns the mask bool[E, K, N] of the best of every group; of equal ones, the first."""
    count, size, width = scores.shape
    groups = scores.reshape(count, size // pattern.group, pattern.group, width)
    order = np.argsort(-groups, axis=2, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, :, : pattern.keep], True, axis=2)
    return mask.reshape(scores.shape)


def kept_of_all(scores: Array, rate: float, scope: Scope) -> Array:
    """Returns the mask bool[E, K, N] without the lowest `rate` of the scores, exactly.

    Args:
        scores: f[E, K, N].
        rate: Fraction that goes.
        scope: Whether scores compare across the layer, or only within the inputs of an output.
    """
    if scope == "layer":
        flat = scores.reshape(1, -1, 1)
        return kept_of_all(flat, rate, "output").reshape(scores.shape)
    size = scores.shape[1]
    num_gone = round(rate * size)
    mask = np.ones(scores.shape, bool)
    gone = np.argsort(scores, axis=1, kind="stable")[:, :num_gone]
    np.put_along_axis(mask, gone, False, axis=1)
    return mask
