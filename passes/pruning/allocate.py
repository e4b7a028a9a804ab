"""How many units every group keeps, so that a budget is met."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod
from typing import Any, Literal

import numpy as np

from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.pruning.alike import ClassCost, Classes
from regraft.passes.pruning.cost import Cost
from regraft.passes.pruning.criteria import Scores
from regraft.passes.pruning.limits import Limits

Array = np.ndarray[Any, Any]
Allocation = Literal["uniform", "global", "isomorphic", "spectral", "measured", "learned"]

_BISECTIONS = 50
_MAX_REPAIRS = 400
_MISSED = 1e-2  # the tightest tolerance: beyond it all combinations are tried, if they are few
_MAX_COMBINATIONS = 20_000  # all are tried up to this many, which takes a fifth of a second
_LEAST_PRICE = 1e-9  # units that cost nothing by this measure are worth keeping
_CLOSE = 1e-3  # a tenth of the tightest tolerance: then repairing stops


def allocate(
    coupling: Coupling,
    cost: Cost,
    budget: float,
    classes: Classes,
    allocation: Allocation,
    scores: Scores,
    *,
    priced: bool = False,
) -> Array:
    """Returns the size of every group, i64[groups], with a cost next to `budget`.

    Args:
        coupling: The groups.
        cost: Counts.
        budget: What is wanted.
        classes: Groups that keep the same fraction, and what sizes they may take.
        allocation: `uniform` keeps the same fraction everywhere, `global` the best scores of all
            groups, `isomorphic` ranks among groups of the same structure.
        scores: Per unit.
        priced: Whether `global` ranks by score per cost, of scores that add up across groups.
    """
    limits = classes.limits
    if allocation == "uniform":
        wanted: Callable[[float], Array] = lambda ratio: limits.clip(limits.high * ratio)  # noqa: E731
    else:
        ranked = _within_kinds(coupling, scores) if allocation == "isomorphic" else scores
        if priced and allocation == "global":
            ranked = _per_cost(coupling, cost, ranked)
        wanted = _by_score(coupling, classes, ranked)
    counted = ClassCost(cost, classes)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if counted.total(wanted(middle)) > budget:
            high = middle
        else:
            low = middle
    return settle(cost, budget, classes, wanted(low))


def settle(cost: Cost, budget: float, classes: Classes, sizes: Array) -> Array:
    """Returns the sizes of groups, i64[groups], with small changes that bring the cost nearer.

    Args:
        cost: Of groups.
        budget: What is wanted.
        classes: What sizes may be taken.
        sizes: i64[classes]: where to start.
    """
    counted, limits = ClassCost(cost, classes), classes.limits
    sizes = _repair(counted, budget, limits, sizes)
    if abs(counted.total(sizes) - budget) > _MISSED * budget:
        exact = _nearest_of_all(counted, budget, limits)
        sizes = sizes if exact is None else exact
    return classes.sizes(sizes)


def _by_score(coupling: Coupling, classes: Classes, ranked: Scores) -> Callable[[float], Array]:
    """Returns sizes as a function of the fraction of all units kept, best scores first."""
    units = np.sort(np.concatenate([ranked[group].reshape(-1) for group in coupling.groups]))
    ascending = [np.sort(ranked[group].reshape(-1)) for group in coupling.groups]
    blocks = np.array([group.num_blocks for group in coupling.groups])

    def wanted(ratio: float) -> Array:
        first = min(int((1 - ratio) * len(units)), len(units) - 1)
        least = units[first]
        kept = [len(own) - np.searchsorted(own, least) for own in ascending]
        return classes.limits.clip(classes.means(np.array(kept) / blocks))

    return wanted


def _per_cost(coupling: Coupling, cost: Cost, scores: Scores) -> Scores:
    """Returns every score over what its unit costs in the whole module."""
    full = np.array([group.size for group in coupling.groups])
    prices = cost.gradient(full)
    least = max(float(prices.max(initial=0.0)) * _LEAST_PRICE, np.finfo(np.float64).tiny)
    return {
        group: scores[group] / (max(float(price), least) / group.num_blocks)
        for group, price in zip(coupling.groups, prices, strict=True)
    }


def _within_kinds(coupling: Coupling, scores: Scores) -> Scores:
    """Returns ranks in 0..1 among the units of isomorphic groups."""
    ranks: Scores = {}
    for groups in coupling.isomorphic.values():
        pool = np.concatenate([scores[group].reshape(-1) for group in groups])
        order = np.empty(len(pool))
        order[np.argsort(pool, kind="stable")] = (np.arange(len(pool)) + 0.5) / len(pool)
        start = 0
        for group in groups:
            count = scores[group].size
            ranks[group] = order[start : start + count].reshape(scores[group].shape)
            start += count
    return ranks


def _repair(cost: Cost, budget: float, limits: Limits, sizes: Array) -> Array:
    """Moves single groups, or two at once, by a step while that brings the cost nearer."""
    miss = abs(cost.total(sizes) - budget)
    for _ in range(_MAX_REPAIRS):
        if miss <= _CLOSE * budget:
            break
        best: Array | None = None
        for candidate in _candidates(cost, budget, limits, sizes):
            found = abs(cost.total(candidate) - budget)
            if found < miss * (1 - 1e-9):
                best, miss = candidate, found
        if best is None:
            break
        sizes = best
    return sizes


def _nearest_of_all(cost: Cost, budget: float, limits: Limits) -> Array | None:
    """Returns the sizes nearest to the budget of all there are, None when they are too many."""
    ranges = zip(limits.low, limits.high, limits.step, strict=True)
    options = [sorted({*range(int(a), int(b) + 1, int(s)), int(b)}) for a, b, s in ranges]
    if prod(map(len, options)) > _MAX_COMBINATIONS:
        return None
    best, miss = limits.high, np.inf
    for combination in itertools.product(*options):
        sizes = np.array(combination)
        found = abs(cost.total(sizes) - budget)
        if found < miss:
            best, miss = sizes, found
    return best


def _candidates(cost: Cost, budget: float, limits: Limits, sizes: Array) -> list[Array]:
    """Returns the most promising neighbours, judged by the gradient."""
    up = np.minimum(np.where(sizes % limits.step, limits.high, sizes + limits.step), limits.high)
    down = np.maximum((sizes - 1) // limits.step * limits.step, limits.low)
    up = np.where(up % limits.step, limits.high, up)
    moves = np.concatenate([up - sizes, down - sizes])
    gradient = np.concatenate([cost.gradient(sizes)] * 2)
    gains = np.where(moves == 0, np.inf, gradient * moves)
    missing = budget - cost.total(sizes)
    singles = np.argsort(np.abs(gains - missing), kind="stable")[:8]
    picks: list[tuple[int, ...]] = [(int(i),) for i in singles if np.isfinite(gains[i])]
    usable = np.flatnonzero(np.isfinite(gains))
    if 0 < len(usable) <= 1024:
        pairs = np.abs(gains[usable][:, None] + gains[usable][None, :] - missing)
        for flat in np.argsort(pairs, axis=None, kind="stable")[:16]:
            i, j = divmod(int(flat), len(usable))
            picks.append((int(usable[i]), int(usable[j])))
    result = []
    for pick in picks:
        candidate = sizes.copy()
        for i in dict.fromkeys(index % len(sizes) for index in pick):
            candidate[i] += moves[next(index for index in pick if index % len(sizes) == i)]
        result.append(candidate)
    return result


def choose(coupling: Coupling, sizes: Array, scores: Scores) -> dict[Group, Array]:
    """Returns the positions of the best scores in every block, ascending."""
    choice: dict[Group, Array] = {}
    for group, size in zip(coupling.groups, sizes, strict=True):
        if size >= group.size:
            continue
        order = np.argsort(-scores[group], axis=1, kind="stable")[:, : int(size)]
        rows = np.sort(order, axis=1)
        choice[group] = rows if group.num_blocks > 1 else rows[0]
    return choice
