"""A matrix as two factors of blocks: low rank, block-dense and block-shuffle in one form.

A matrix `W f[K, N]` is cut into a grid of `b x m` blocks `W_ij f[p, q]`, each of which becomes the
product of `p x r` and `r x q`:

- grid 1 x 1 is low rank, `U V`;
- grid b x 1 is block-diagonal times dense (*block-dense*);
- grid b x m is two block-diagonal factors with a shuffle between them (*block-shuffle*, Monarch).

The best blocks in the Frobenius norm are truncated singular value decompositions, one per block:
what is lost is the root of the sum of squares of the singular values left out. With second moments
`H = L Lᵀ` of the inputs, `Lᵀ W` is decomposed instead, and the bound is on what the results lose.

Source: Wei et al., Building on Efficient Foundations, 2024, section 3; Dao et al., Monarch, 2022,
section 3.3 (projection); Wang et al., SVD-LLM, 2024, section 3.1 (whitening).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_DAMPING = 1e-6
"""Of the mean diagonal, added to second moments: directions that were never seen cost something."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The factors.

    Args:
        left: f32[b, p, m * r], of every block of inputs.
        right: f32[m, b * r, q], of every block of outputs.
    """

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        """Rank of a block."""
        return int(self.right.shape[1] // self.left.shape[0])

    @property
    def num_weights(self) -> int:
        """Numbers of both factors."""
        return self.left.size + self.right.size

    def merged(self) -> Array:
        """Returns the matrix that they are together, f32[K, N]."""
        (b, p, _), (m, _, q), r = self.left.shape, self.right.shape, self.rank
        left = self.left.reshape(b, p, m, r).astype(np.float64)
        right = self.right.reshape(m, b, r, q).astype(np.float64)
        whole: Array = np.einsum("ipjr,jirq->ipjq", left, right, optimize=True)
        return whole.reshape(b * p, m * q).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class BlockSpectrum:
    """The decompositions of all blocks, from which factors of any rank are cut.

    Args:
        u: f64[b, m, p, k], left vectors, un-whitened.
        s: f64[b, m, k], falling.
        v: f64[b, m, k, q].
    """

    u: Array
    s: Array
    v: Array

    @property
    def energy(self) -> float:
        """Sum of squares of everything: of the weight, or of the results where inputs were seen."""
        return float(np.square(self.s).sum())

    @property
    def ranks(self) -> range:
        """Ranks at which factors take fewer numbers than the matrix."""
        b, m, p, _ = self.u.shape
        q = self.v.shape[3]
        dense = b * p * m * q
        return range(1, min(p, q, (dense - 1) // self.num_weights(1)) + 1)

    def num_weights(self, rank: int) -> int:
        """Returns `r (m K + b N)`, the numbers that factors of a rank take."""
        b, m, p, _ = self.u.shape
        q = self.v.shape[3]
        return int(rank * (m * b * p + b * m * q))

    def lost(self, rank: int) -> float:
        """Returns the root of the sum of squares that a rank leaves out: the bound of its error."""
        return float(np.sqrt(np.square(self.s[:, :, rank:]).sum()))

    def cut(self, rank: int) -> Blocks:
        """Returns factors of a rank, singular values shared evenly between them."""
        b, m, p, _ = self.u.shape
        root = np.sqrt(self.s[:, :, :rank])
        left = self.u[..., :rank] * root[:, :, None, :]  # [b, m, p, r]
        right = self.v[:, :, :rank] * root[..., None]  # [b, m, r, q]
        return Blocks(
            left.transpose(0, 2, 1, 3).reshape(b, p, m * rank).astype(np.float32),
            right.transpose(1, 0, 2, 3).reshape(m, b * rank, -1).astype(np.float32),
        )


def block_spectrum(
    matrix: Array, grid: tuple[int, int], second: Array | None = None
) -> BlockSpectrum:
    """Returns the decompositions of the blocks of a matrix.

    Args:
        matrix: f32[K, N].
        grid: b and m, which divide K and N.
        second: f64[K, K], the sum of x xᵀ over the inputs x, for b = 1; None to compare weights
            alone.
    """
    b, m = grid
    blocks = matrix.astype(np.float64).reshape(b, matrix.shape[0] // b, m, -1)
    blocks = blocks.transpose(0, 2, 1, 3)  # [b, m, p, q]
    if second is None:
        u, s, v = np.linalg.svd(blocks, full_matrices=False)
        return BlockSpectrum(u, s, v)
    if b != 1:
        raise AssertionError("errors of blocks of inputs do not add up in results")
    lower = _lower(second)
    u, s, v = np.linalg.svd(lower.T @ blocks, full_matrices=False)
    return BlockSpectrum(np.linalg.solve(lower.T, u), s, v)


def _lower(second: Array) -> Array:
    """Returns the lower Cholesky factor of second moments, damped until they are definite."""
    mean = float(np.einsum("kk->k", second).mean()) or 1.0
    eye = np.eye(len(second))
    damping = _DAMPING
    while True:
        try:
            return np.linalg.cholesky(second + damping * mean * eye)
        except np.linalg.LinAlgError:
            damping *= 10
            if damping > 1:
                raise
