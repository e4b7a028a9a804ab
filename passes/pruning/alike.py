"""Plans that a config can state: layers alike, whole heads only.

A library's config has one number for what all layers have: heads, hidden width, feed-forward
width. Groups whose merged axes have the same size stand for the same number, so that they keep the
same fraction of it: 9 of 12 heads go with 576 of 768 channels. What no config states stays whole:
channels within heads, and query heads that each key head chooses for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

import numpy as np

from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.pruning.cost import Cost
from regraft.passes.pruning.limits import Limits, kind_of, occurrences

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Classes:
    """Groups that keep the same fraction.

    Args:
        of: i64[groups]: the class of every group.
        scale: i64[groups]: units of a group for each unit of its class.
        limits: What sizes classes may take.
    """

    of: Array
    scale: Array
    limits: Limits

    def sizes(self, wanted: Array) -> Array:
        """Returns the sizes of groups, i64[groups], from those of classes."""
        return np.asarray(wanted[self.of] * self.scale)

    def means(self, sizes: Array) -> Array:
        """Returns the mean size of every class, f64[classes], from those of groups."""
        count = np.bincount(self.of)
        return np.asarray(np.bincount(self.of, sizes / self.scale) / count)


@dataclass(frozen=True, slots=True)
class ClassCost:
    """A cost in terms of the sizes of classes."""

    of: Cost
    classes: Classes

    def total(self, sizes: Array) -> float:
        """Returns the cost at given sizes of all classes."""
        return self.of.total(self.classes.sizes(sizes))

    def gradient(self, sizes: Array) -> Array:
        """Returns the derivative by every class's size."""
        own = self.of.gradient(self.classes.sizes(sizes)) * self.classes.scale
        return np.bincount(self.classes.of, own)


def each_alone(limits: Limits) -> Classes:
    """Returns one class per group."""
    count = len(limits.high)
    return Classes(np.arange(count), np.ones(count, np.int64), limits)


def alike(coupling: Coupling, limits: Limits) -> Classes:
    """Returns classes of groups that a config states by one number."""
    members: dict[tuple[object, ...], list[int]] = {}
    for idx, group in enumerate(coupling.groups):
        is_kept = bool(limits.low[idx] == limits.high[idx])
        if group.num_blocks > 1 or kind_of(coupling, group) == "head-size":
            members[group.idx,] = [idx]
            limits.low[idx] = limits.high[idx]
        else:
            members.setdefault((_merged_size(coupling, group), is_kept), []).append(idx)
    of, scale = np.zeros((2, len(coupling.groups)), np.int64)
    low, high, step = [], [], []
    for number, indices in enumerate(members.values()):
        units = reduce(gcd, (int(limits.high[idx]) for idx in indices))
        of[indices] = number
        scale[indices] = limits.high[indices] // units
        # a unit of the class that is none of a step's is no step of the class
        steps = [int(limits.step[idx]) for idx in indices]
        each = reduce(
            _least_common,
            (own // gcd(own, int(scale[idx])) for own, idx in zip(steps, indices, strict=True)),
        )
        step.append(each if 2 * each <= units else 1)
        high.append(units)
        least = max(-(-int(limits.low[idx]) // int(scale[idx])) for idx in indices)
        low.append(min(-(-least // step[-1]) * step[-1], units))
    return Classes(of, scale, Limits(np.array(low), np.array(high), np.array(step)))


def _least_common(a: int, b: int) -> int:
    return a * b // gcd(a, b)


def _merged_size(coupling: Coupling, group: Group) -> int:
    """Returns the size of the largest product that the group is a factor of."""
    size = group.size
    for name, axis in group.weights:
        for factors, _ in occurrences(coupling.builder.weights[name][axis], group):
            whole = 1
            for factor in factors:
                whole *= factor.size if isinstance(factor.size, int) else 1
            size = max(size, whole)
    return size
