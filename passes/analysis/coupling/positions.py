"""From kept positions of leaves to kept positions of axes, as index arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.ir.errors import UnsupportedError
from regraft.passes.analysis.coupling.spaces import Form, Space, factors_of, find

Array = np.ndarray[Any, Any]
Kept = Mapping[Space, Array]
"""Kept positions of leaves, ascending: i64[K], or i64[blocks, K] where every block has its own."""

_OUTSIDE = "positions that are chosen per block stand outside of their blocks"


def kept_positions(space: Space, kept: Kept) -> Array:
    """Returns the kept positions of an axis of static size, ascending."""
    space = find(space)
    assert isinstance(space.size, int), f"positions of the symbolic axis {space.size}"
    if space.form is Form.LEAF:
        rows = kept.get(space)
        if rows is None:
            return np.arange(space.size)
        if rows.ndim > 1:
            raise UnsupportedError(_OUTSIDE)
        return rows
    if space.form is Form.SUM:
        parts, start = [], 0
        for part in space.parts:
            parts.append(kept_positions(part, kept) + start)
            size = part.size
            start += size if isinstance(size, int) else 0
        return np.concatenate(parts)
    return _product(space, kept)


def _product(space: Space, kept: Kept) -> Array:
    factors = factors_of(space)
    taken: list[Array] = []  # positions of the factors so far, one per kept combination
    flat = np.zeros(1, np.int64)
    for i, factor in enumerate(factors):
        rows = kept.get(factor)
        if rows is not None and rows.ndim > 1:
            block = np.zeros(len(flat), np.int64)
            for j in _blocks_before(factors, i):
                block = block * int(str(factors[j].size)) + taken[j]
            chosen = rows[block]
        else:
            own = kept_positions(factor, kept)
            chosen = np.broadcast_to(own, (len(flat), len(own)))
        count = chosen.shape[1]
        taken = [np.repeat(positions, count) for positions in taken]
        taken.append(chosen.reshape(-1))
        flat = np.repeat(flat, count) * int(str(factor.size)) + taken[-1]
    return flat


def _blocks_before(factors: list[Space], place: int) -> range:
    """Returns the places of the factors over which a leaf chooses: those right before it.

    Their identity alone would not tell: one leaf may stand in a product several times.
    """
    outer = factors[place].outer
    blocks = [] if outer is None else factors_of(outer)
    first = place - len(blocks)
    if first < 0 or factors[first:place] != blocks:
        raise UnsupportedError(_OUTSIDE)
    return range(first, place)


def unit_of(space: Space, leaf: Space) -> Array:
    """Returns, for every position of an axis, the unit of the leaf that it belongs to, -1 for none.

    Units of a leaf with positions per block are numbered block by block.
    """
    space = find(space)
    if space is leaf:
        return np.arange(int(str(space.size)))
    if space.form is Form.LEAF:
        return np.full(int(str(space.size)), -1)
    if space.form is Form.SUM:
        return np.concatenate([unit_of(part, leaf) for part in space.parts])
    factors = factors_of(space)
    sizes = [int(str(factor.size)) for factor in factors]
    result = np.full(sizes, -1)
    grid = np.indices(sizes, sparse=True)
    for axis, factor in enumerate(factors):
        if factor is leaf and leaf.outer is not None:
            block = np.zeros((), np.int64)
            for j in _blocks_before(factors, axis):
                block = block * sizes[j] + grid[j]
            units = block * sizes[axis] + grid[axis]
        else:
            units = unit_of(factor, leaf)[grid[axis]]
        result = np.where((result < 0) & (units >= 0), units, result)
    return result.reshape(-1)
