"""A matrix as a matrix product operator: a train of small cores.

With `K = i_1 … i_n` and `N = o_1 … o_n`, `W[(i_1 … i_n), (o_1 … o_n)]` is reordered to
`(i_1 o_1) … (i_n o_n)` and cut by successive truncated singular value decompositions into cores
`f[χ_(k-1), i_k, o_k, χ_k]` of bond `χ`. The squares of the singular values left out add up to at
least the square of the error.

Source: Tomut et al., CompactifAI, 2024, section 2; Oseledets, Tensor-Train Decomposition, 2011,
theorem 2.2 (the bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Train:
    """The cores, with how much they may be off.

    Args:
        cores: f32[χ_(k-1), i_k, o_k, χ_k]; the first and the last bond are 1.
        bound: Of the Frobenius norm of the error: the root of the sum of squares left out.
    """

    cores: tuple[Array, ...]
    bound: float

    @property
    def num_weights(self) -> int:
        """Numbers of all cores."""
        return sum(int(core.size) for core in self.cores)

    def merged(self) -> Array:
        """Returns the matrix that they are together, f32[K, N]."""
        inputs = [core.shape[1] for core in self.cores]
        outputs = [core.shape[2] for core in self.cores]
        whole = np.ones((1, 1))
        for core in self.cores:
            chi, _, _, after = core.shape
            step = whole.reshape(-1, chi) @ core.astype(np.float64).reshape(chi, -1)
            whole = step.reshape(-1, after)
        pairs = [size for pair in zip(inputs, outputs, strict=True) for size in pair]
        count = len(self.cores)
        order = (*range(0, 2 * count, 2), *range(1, 2 * count, 2))
        matrix = whole.reshape(pairs).transpose(order).reshape(prod(inputs), prod(outputs))
        return matrix.astype(np.float32)


def factors_of(size: int, count: int) -> tuple[int, ...] | None:
    """Returns `count` factors of a size, as even as its primes allow; None when one would be 1."""
    primes = []
    rest, prime = size, 2
    while rest > 1:
        while rest % prime == 0:
            primes.append(prime)
            rest //= prime
        prime += 1
    if len(primes) < count:
        return None
    found = [1] * count
    for each in sorted(primes, reverse=True):
        found[found.index(min(found))] *= each
    return tuple(sorted(found))


def num_weights(inputs: Sequence[int], outputs: Sequence[int], bond: int) -> int:
    """Returns how many numbers a train of a bond has: Σ χ_(k-1) i_k o_k χ_k."""
    bonds = _bonds(inputs, outputs, bond)
    pairs = zip(inputs, outputs, strict=True)
    return sum(bonds[k] * i * o * bonds[k + 1] for k, (i, o) in enumerate(pairs))


def full_bond(inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """Returns the bond at which every matrix is a train exactly."""
    return max(_bonds(inputs, outputs, prod(inputs) * prod(outputs)))


def _bonds(inputs: Sequence[int], outputs: Sequence[int], bond: int) -> list[int]:
    sizes = [i * o for i, o in zip(inputs, outputs, strict=True)]
    found = [1]
    for k in range(1, len(sizes)):
        # what is left of the cut has been cut itself: it spans no more than its bond and core
        found.append(min(bond, found[-1] * sizes[k - 1], prod(sizes[k:])))
    return [*found, 1]


@dataclass(frozen=True, slots=True, eq=False)
class FirstCut:
    """A matrix, reordered and decomposed at its first bond: what trains of any bond start with.

    Args:
        inputs: Factors of K.
        outputs: Factors of N, as many.
        u: f64[i_1 o_1, k].
        s: f64[k], falling.
        v: f64[k, rest].
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    u: Array
    s: Array
    v: Array

    @property
    def energy(self) -> float:
        """Sum of squares of the matrix."""
        return float(np.square(self.s).sum())

    def bound(self, bond: int) -> float:
        """Returns the bound of the error of a train; a train of two cores needs no other cut."""
        if len(self.inputs) == 2:
            return float(np.sqrt(np.square(self.s[bond:]).sum()))
        return self.train(bond).bound

    def train(self, bond: int) -> Train:
        """Returns the train of a largest bond."""
        kept = min(bond, len(self.s))
        lost = float(np.square(self.s[kept:]).sum())
        first = self.u[:, :kept].reshape(1, self.inputs[0], self.outputs[0], kept)
        cores = [first.astype(np.float32)]
        rest, chi = self.s[:kept, None] * self.v[:kept], kept
        for i, o in zip(self.inputs[1:-1], self.outputs[1:-1], strict=True):
            u, s, v = np.linalg.svd(rest.reshape(chi * i * o, -1), full_matrices=False)
            kept = min(bond, len(s))
            lost += float(np.square(s[kept:]).sum())
            cores.append(u[:, :kept].reshape(chi, i, o, kept).astype(np.float32))
            rest, chi = s[:kept, None] * v[:kept], kept
        last = rest.reshape(chi, self.inputs[-1], self.outputs[-1], 1)
        return Train((*cores, last.astype(np.float32)), float(np.sqrt(lost)))


def first_cut(matrix: Array, inputs: Sequence[int], outputs: Sequence[int]) -> FirstCut:
    """Returns what trains of a matrix start with.

    Args:
        matrix: f32[K, N].
        inputs: Factors of K, at least two.
        outputs: Factors of N, as many.
    """
    count = len(inputs)
    order = [axis for k in range(count) for axis in (k, count + k)]
    turned = matrix.astype(np.float64).reshape(*inputs, *outputs).transpose(order)
    u, s, v = np.linalg.svd(turned.reshape(inputs[0] * outputs[0], -1), full_matrices=False)
    return FirstCut(tuple(inputs), tuple(outputs), u, s, v)
