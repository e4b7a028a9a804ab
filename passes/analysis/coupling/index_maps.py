"""Index maps as factored axes: what a gather by constant positions does to blocks.

An index map is a whole label tensor: which source position every element of the result shows. Where
it counts through the source in nested loops (a shuffle of channels, heads repeated for their
queries, windows side by side) its loops are factors that source and result share, and positions
may go from each. Other maps fall into runs, or pin the axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Loop:
    """A factor of a result axis: `count` positions, each `stride` source positions after the last.

    A stride of 0 shows the same source positions again: copies.
    """

    axis: int
    count: int
    stride: int


def loops_of(index: Array, size: int) -> list[Loop] | None:
    """Returns the loops of an index map, outer first, axis by axis; None where it has none.

    Args:
        index: i64[result axes…]: source positions.
        size: Number of source positions; every one must be shown by exactly one combination of the
            loops that are no copies.

    Cost: O(elements * divisors).
    """
    if index.size == 0 or index.min() != 0 or index.flat[0] != 0:
        return None
    loops: list[Loop] = []
    total = np.zeros((1,) * index.ndim, np.int64)
    for axis in range(index.ndim):
        line = index[tuple(slice(None) if i == axis else 0 for i in range(index.ndim))]
        found = _factors(line)
        if found is None:
            return None
        loops += [Loop(axis, count, stride) for count, stride in found]
        total = total + line.reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    if not np.array_equal(np.broadcast_to(total, index.shape), index):
        return None
    return loops if _covers(loops, size) else None


def _factors(line: Array) -> list[tuple[int, int]] | None:
    """Returns counts and strides of nested loops that make a line starting at 0, outer first."""
    if len(line) == 1:
        return []
    stride = int(line[1])
    straight = np.flatnonzero(line != stride * np.arange(len(line)))
    longest = int(straight[0]) if len(straight) else len(line)
    for count in range(longest, 1, -1):
        if len(line) % count or stride < 0:
            continue
        firsts = line[::count]
        if np.array_equal(line.reshape(-1, count), firsts[:, None] + stride * np.arange(count)):
            outer = _factors(firsts)
            if outer is not None:
                return [*outer, (count, stride)]
    return None


def _covers(loops: list[Loop], size: int) -> bool:
    step = 1
    for loop in sorted(loops, key=lambda loop: loop.stride):
        if loop.stride == 0:
            continue
        if loop.stride != step:
            return False
        step *= loop.count
    return step == size
