"""How many units every group keeps, so that a budget is met."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, gcd, prod
from typing import Any, Literal

import numpy as np

from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.spaces import factors_of, find, leaves_of
from regraft.passes.pruning.cost import CostModel
from regraft.passes.pruning.criteria import Scores

Array = np.ndarray[Any, Any]
Allocation = Literal["uniform", "global", "isomorphic"]

_BISECTIONS = 50
_MAX_REPAIRS = 400
_MISSED = 1e-2  # the tightest tolerance: beyond it all combinations are tried, if they are few
_MAX_COMBINATIONS = 20_000  # all are tried up to this many, which takes a fifth of a second
_CLOSE = 1e-3  # a tenth of the tightest tolerance: then repairing stops


@dataclass(frozen=True, slots=True)
class Limits:
    """What sizes groups may take, i64[groups] each: between two bounds, in steps."""

    low: Array
    high: Array
    step: Array

    def clip(self, sizes: Array) -> Array:
        """Returns the nearest allowed sizes; the full size is always allowed."""
        rounded = np.rint(sizes / self.step).astype(np.int64) * self.step
        # a size that is no multiple stays whole when nearly all of it is wanted
        rounded = np.where(sizes > self.high - self.step / 2, self.high, rounded)
        return np.clip(rounded, self.low, self.high)


def limits_of(
    coupling: Coupling,
    round_to: int,
    kept: frozenset[Group] = frozenset(),
    min_keep: float = 0.0,
) -> Limits:
    """Returns the sizes that groups may take.

    A group that is the innermost factor of its axes takes multiples of `round_to`; one of whole
    blocks (heads) takes steps that make its axes multiples. Groups in `kept` keep all, others at
    least the fraction `min_keep`, and one unit.
    """
    low, high, step = [], [], []
    for group in coupling.groups:
        each = _step(coupling, group, round_to)
        step.append(each)
        high.append(group.size)
        least = max(1, ceil(group.size * min_keep - 1e-9))
        floor = min(-(-least // each) * each, group.size)
        low.append(group.size if group in kept else floor)
    return Limits(np.array(low), np.array(high), np.array(step))


def _step(coupling: Coupling, group: Group, round_to: int) -> int:
    step = 1
    for name, axis in group.weights:
        for factors, position in _occurrences(coupling.builder.weights[name][axis], group):
            inner = 1
            for factor in factors[position + 1 :]:
                inner *= factor.size if isinstance(factor.size, int) else 1
            own = round_to // gcd(round_to, inner)
            step = max(step, own)
    return step if 2 * step <= group.size else 1


def _occurrences(space: Any, group: Group) -> list[tuple[list[Any], int]]:
    """Returns the products that hold a leaf, with its place among their factors."""
    space = find(space)
    if space.form.value == "sum":
        return [found for part in space.parts for found in _occurrences(part, group)]
    factors = factors_of(space)
    found = [(factors, i) for i, factor in enumerate(factors) if factor is group.space]
    for factor in factors:
        if factor.form.value == "sum" and group.space in leaves_of(factor):
            found += _occurrences(factor, group)
    return found


def allocate(
    coupling: Coupling,
    cost: CostModel,
    budget: float,
    limits: Limits,
    allocation: Allocation,
    scores: Scores,
) -> Array:
    """Returns the size of every group, i64[groups], with a cost next to `budget`."""
    if allocation == "uniform":
        wanted: Callable[[float], Array] = lambda ratio: limits.clip(limits.high * ratio)  # noqa: E731
    else:
        wanted = _by_score(coupling, limits, allocation, scores)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if cost.total(wanted(middle)) > budget:
            high = middle
        else:
            low = middle
    sizes = _repair(cost, budget, limits, wanted(low))
    if abs(cost.total(sizes) - budget) <= _MISSED * budget:
        return sizes
    exact = _nearest_of_all(cost, budget, limits)
    return sizes if exact is None else exact


def _by_score(
    coupling: Coupling, limits: Limits, allocation: Allocation, scores: Scores
) -> Callable[[float], Array]:
    """Returns sizes as a function of the fraction of all units kept, best scores first."""
    ranked = _within_kinds(coupling, scores) if allocation == "isomorphic" else scores
    units = np.sort(np.concatenate([ranked[group].reshape(-1) for group in coupling.groups]))
    descending = [np.sort(ranked[group].reshape(-1)) for group in coupling.groups]
    blocks = np.array([group.num_blocks for group in coupling.groups])

    def wanted(ratio: float) -> Array:
        first = min(int((1 - ratio) * len(units)), len(units) - 1)
        least = units[first]
        kept = [len(own) - np.searchsorted(own, least) for own in descending]
        return limits.clip(np.array(kept) / blocks)

    return wanted


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


def _repair(cost: CostModel, budget: float, limits: Limits, sizes: Array) -> Array:
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


def _nearest_of_all(cost: CostModel, budget: float, limits: Limits) -> Array | None:
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


def _candidates(cost: CostModel, budget: float, limits: Limits, sizes: Array) -> list[Array]:
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
