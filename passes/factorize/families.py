"""Which sizes a layer can be factored to, what each takes and loses, by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regraft.passes.calibration.moments import Moments
from regraft.passes.factorize.blocks import block_spectrum
from regraft.passes.factorize.emit import Factors
from regraft.passes.factorize.mpo import factors_of, first_cut, full_bond, num_weights

Array = np.ndarray[Any, Any]
Method = Literal["svd", "whitened", "block-dense", "block-shuffle", "mpo"]

_MAX_OPTIONS = 24
"""Sizes of a layer that the solver chooses among."""


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A layer in factors of one size.

    Args:
        rank: Of a block, or the bond.
        num_weights: Numbers that the factors take.
        bound: What the error is at most: root of the sum of squares, relative to that of the
            whole; of the results on the samples for `whitened`, else of the weight.
        make: Returns the factors.
    """

    rank: int
    num_weights: int
    bound: float
    make: Callable[[], Factors]


@dataclass(frozen=True, slots=True)
class Shape:
    """What factors are made of, beside their size.

    Args:
        method: How.
        blocks: Blocks on either side, of `block-dense` and `block-shuffle`.
        cores: Of `mpo`.
    """

    method: Method
    blocks: int = 4
    cores: int = 2

    def refusal(self, inputs: int, outputs: int) -> str | None:
        """Returns why a matrix cannot be cut so, or None."""
        if self.method == "mpo":
            for size in (inputs, outputs):
                if factors_of(size, self.cores) is None:
                    return f"{size} has fewer than {self.cores} prime factors"
            return None
        rows, columns = self.grid
        if inputs % rows or outputs % columns:
            return f"{inputs} x {outputs} has no {rows} x {columns} equal blocks"
        return None

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of inputs and of outputs."""
        match self.method:
            case "block-dense":
                return self.blocks, 1
            case "block-shuffle":
                return self.blocks, self.blocks
            case _:
                return 1, 1


def options_of(
    shape: Shape, matrix: Array, moments: Moments | None, rank: int | None = None
) -> list[Option]:
    """Returns the sizes that take fewer numbers than a matrix, ascending; or one of a given rank.

    Args:
        shape: How it is factored.
        matrix: f32[K, N].
        moments: Of the inputs, for `whitened`.
        rank: The only one, as far as the matrix has it; fewer numbers are then not asked for.
    """
    if shape.method == "mpo":
        return _trains(shape, matrix, rank)
    second = None if moments is None else moments.second[0]
    found = block_spectrum(matrix, shape.grid, second)
    whole = found.energy if moments is None else moments.energy(matrix[None])
    scale = whole**0.5 or 1.0

    def option(size: int) -> Option:
        bound = found.lost(size) / scale
        return Option(size, found.num_weights(size), bound, lambda: found.cut(size))

    if rank is not None:
        return [option(min(rank, found.s.shape[2]))]
    return [option(size) for size in _spread(found.ranks)]


def _spread(ranks: range) -> list[int]:
    """Returns ranks on an even grid, of multiples of 8 where there are enough."""
    step = max(1, -(-len(ranks) // _MAX_OPTIONS))
    if len(ranks) >= 64:
        step = -(-step // 8) * 8
    return [rank for rank in ranks if rank % step == 0] or list(ranks)


def _trains(shape: Shape, matrix: Array, rank: int | None) -> list[Option]:
    inputs, outputs = (factors_of(size, shape.cores) for size in matrix.shape)
    assert inputs is not None, "refusal was asked"
    assert outputs is not None, "refusal was asked"
    found = first_cut(matrix, inputs, outputs)
    scale = found.energy**0.5 or 1.0

    def option(bond: int) -> Option:
        count = num_weights(inputs, outputs, bond)
        return Option(bond, count, found.bound(bond) / scale, lambda: found.train(bond))

    top = full_bond(inputs, outputs)
    if rank is not None:
        return [option(min(rank, top))]
    bonds = range(1, top + 1)
    smaller = [bond for bond in bonds if num_weights(inputs, outputs, bond) < matrix.size]
    return [option(bond) for bond in _spread(range(1, len(smaller) + 1))]
