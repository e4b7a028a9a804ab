"""SparseGPT: numbers go block by block, and those behind make up for them.

Frantar & Alistarh, SparseGPT, 2023, algorithm 1: with `H⁻¹ = Uᵀ U` of the inputs' second moments,
the number `w` of position j costs `w² / U_jj²`, and its loss is made up for by the positions behind
it. Blocks of positions choose together which of their numbers go.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.sparsity.masks import Pattern, kept_in_groups, kept_of_all

Array = np.ndarray[Any, Any]

BLOCK = 128
"""Positions that choose together, and whose updates of the rest are made by one product."""


def sparsegpt(matrix: Array, factor: Array, pattern: Pattern, rate: float) -> Array:
    """Returns the sparse matrix f32[K, N].

    Args:
        matrix: f32[K, N].
        factor: f[K, K], the upper Cholesky factor of the inverse of the damped second moments.
        pattern: `N:M`, or any.
        rate: Fraction that goes, without `N:M`.
    """
    size = matrix.shape[0]
    block = BLOCK - BLOCK % pattern.group if pattern.group else BLOCK
    rest = matrix.astype(np.float64)
    diagonal = np.square(np.einsum("kk->k", factor))[:, None]
    budget = _Budget(size, rate)
    for start in range(0, size, block):
        stop = min(start + block, size)
        part = rest[start:stop]
        mask = np.ones(part.shape, bool)
        if not pattern.group:
            scores = np.square(part) / diagonal[start:stop]
            mask = kept_of_all(scores[None], budget.rate_of(start, stop), "layer")[0]
        errors = np.empty(part.shape)
        for idx in range(start, stop):
            if pattern.group and idx % pattern.group == 0:
                group = slice(idx - start, idx - start + pattern.group)
                # of what earlier positions made of them by now
                scores = np.square(part[group]) / diagonal[idx : idx + pattern.group]
                mask[group] = kept_in_groups(scores[None], pattern)[0]
            row = rest[idx]
            kept = np.where(mask[idx - start], row, 0.0)
            error = (row - kept) / factor[idx, idx]
            rest[idx] = kept
            rest[idx + 1 : stop] -= np.outer(factor[idx, idx + 1 : stop], error)
            errors[idx - start] = error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return rest.astype(np.float32)


class _Budget:
    """Hands out what goes to blocks, so that the whole comes out exactly."""

    def __init__(self, size: int, rate: float) -> None:
        self.size = size
        self.rate = rate

    def rate_of(self, start: int, stop: int) -> float:
        """Returns the fraction that goes of the block from `start` to `stop`."""
        before, after = (round(self.rate * at) for at in (start, stop))
        return (after - before) / (stop - start)
