"""Factors per position: how a number per channel lies in the tensors that hold the channels.

A factor belongs to the spaces of an axis (the coupling), not to the axis: the same numbers stand in
`[B, S, 768]`, in `[B, 12, S, 64]` after a reshape, and in every weight that they go through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import Space, leaves_of, summands_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A positive number per combination of positions of leaves.

    Args:
        leaves: The leaves, outer first.
        numbers: f64, one axis per leaf.
    """

    leaves: tuple[Space, ...]
    numbers: Array


def factors_along(space: Space, numbers: Array) -> list[Factor] | str:
    """Returns the factors that multiply the positions of an axis, or why there are none.

    Args:
        space: Of the axis; each of its parts makes a factor of its own.
        numbers: f64[size].
    """
    found: list[Factor] = []
    start = 0
    for part in summands_of(space):
        leaves = tuple(leaves_of(part))
        sizes = [leaf.size for leaf in leaves if isinstance(leaf.size, int)]
        if len(sizes) < len(leaves) or not leaves:
            return "its size is known at run time only"
        if len(set(leaves)) < len(leaves):
            return "the same positions stand in it twice"
        count = math.prod(sizes)
        found.append(Factor(leaves, numbers[start : start + count].reshape(sizes)))
        start += count
    return found


def places_of(factor: Factor, spaces: Sequence[Space]) -> list[list[int]]:
    """Returns, for every leaf of a factor, the axes of a tensor that hold it."""
    held = [set(leaves_of(space)) for space in spaces]
    return [[axis for axis, leaves in enumerate(held) if leaf in leaves] for leaf in factor.leaves]


def spread(factor: Factor, spaces: Sequence[Space]) -> Array | None:
    """Returns the factor in a shape that broadcasts with a tensor, f64, 1 where it does not stand.

    Args:
        factor: The factor.
        spaces: One per axis of the tensor.

    Returns:
        None when the tensor does not hold all the leaves, or holds one on two axes.
    """
    indices: list[Array] = []
    for leaf, places in zip(factor.leaves, places_of(factor, spaces), strict=True):
        if len(places) != 1:
            return None
        axis = places[0]
        if not isinstance(spaces[axis].size, int):
            return None
        shape = [1] * len(spaces)
        shape[axis] = -1
        # units of a leaf that is chosen per block are numbered over all blocks
        units = unit_of(spaces[axis], leaf)
        size = int(str(leaf.size))
        indices.append(np.where(units < 0, -1, units % size).reshape(shape))
    stands: Array = np.ones((1,) * len(spaces), bool)
    for units in indices:
        stands = stands & (units >= 0)
    picked = factor.numbers[tuple(np.maximum(units, 0) for units in indices)]
    return np.where(stands, picked, 1.0)


def placed(factor: Factor, spaces: Sequence[Space]) -> Array:
    """Returns `spread` of a tensor that is known to hold the factor."""
    found = spread(factor, spaces)
    if found is None:
        raise AssertionError("a plan names tensors that hold the factor")
    return found


def reach(factor: Factor, spaces: Sequence[Space], array: Array) -> Array:
    """Returns the largest absolute value at every position of a factor, 0 where it does not stand.

    Args:
        factor: The factor.
        spaces: One per axis of the tensor, which holds all the leaves.
        array: The tensor.
    """
    held = set(factor.leaves)
    others = tuple(
        axis for axis, space in enumerate(spaces) if not held.intersection(leaves_of(space))
    )
    top = np.abs(array).max(others, keepdims=True)
    found = np.zeros(factor.numbers.size)
    numbered = Factor(factor.leaves, 1 + np.arange(found.size).reshape(factor.numbers.shape))
    places = placed(numbered, spaces)
    # positions where the factor does not stand have number 1 too: they are told apart by a second
    # numbering
    second = placed(Factor(factor.leaves, numbered.numbers + found.size), spaces)
    stands = np.broadcast_to(places != second, top.shape)
    idx = np.broadcast_to(places, top.shape).astype(np.int64) - 1
    np.maximum.at(found, idx[stands], top[stands])
    return found.reshape(factor.numbers.shape)
