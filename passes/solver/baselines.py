"""Allocations to compare with: every combination, one level for all, the best rate first."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.passes.solver.problem import Choice, Problem

Array = np.ndarray[Any, Any]

MAX_COMBINATIONS = 2_000_000
_BISECTIONS = 60


def at_level(problem: Problem, levels: Array) -> Choice:
    """Returns the options nearest to wanted levels, f64[units], from below where there is one."""
    return np.array(
        [
            max(int(np.searchsorted(unit.levels, level * (1 + 1e-9), "right")) - 1, 0)
            for unit, level in zip(problem.units, levels, strict=True)
        ],
        np.int64,
    )


def brute_force(problem: Problem) -> Choice | None:
    """Returns the best of all choices, None where none fits.

    Raises:
        UsageError: When there are too many to try.
    """
    count = prod(unit.count for unit in problem.units)
    if count > MAX_COMBINATIONS:
        raise UsageError(
            f"{count:,} combinations are too many to try all",
            hint=f"at most {MAX_COMBINATIONS:,}; use method=dp or method=milp",
        )
    counts = [unit.count for unit in problem.units]
    losses = np.zeros(1)
    for unit in problem.units:
        losses = (losses[:, None] + unit.losses).reshape(-1)
    # the first that fits, of all in order of their loss, is the best
    for place in np.argsort(losses, kind="stable"):
        choice = np.array(np.unravel_index(place, counts), np.int64)
        if problem.fits(choice):
            return choice
    return None


def uniform(problem: Problem) -> Choice | None:
    """Returns the highest level that all units can keep within the budget."""
    return by_sparsity(problem, np.ones(len(problem.units)))


def by_sparsity(problem: Problem, weights: Array) -> Choice | None:
    """Returns levels `1 - t * weights` with the smallest `t` that is within the budget.

    Args:
        problem: The problem.
        weights: f64[units], positive: how much goes of each unit, in proportion.
    """
    if not problem.fits(problem.cheapest):
        return None
    low, high = 0.0, 1.0 / max(float(weights.min()), 1e-9)
    best = problem.cheapest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = at_level(problem, np.clip(1.0 - middle * weights, 0.0, 1.0))
        if problem.fits(tried):
            high, best = middle, tried
        else:
            low = middle
    return best


def by_rate(problem: Problem) -> Choice | None:
    """Returns what is left when steps that lose least per cost go first, of all units alike."""
    return lowered(problem, problem.dearest)


def lowered(problem: Problem, choice: Choice) -> Choice | None:
    """Moves single units down until the cost fits, what loses least per cost first."""
    point = choice.copy()
    while not problem.fits(point):
        tables = problem.costs.marginal(point)
        total = problem.costs.total(point)
        best, rate = None, np.inf
        for idx, unit in enumerate(problem.units):
            saved = total - tables[idx][: point[idx]]
            lost = unit.losses[: point[idx]] - unit.losses[point[idx]]
            for option, (s, extra) in enumerate(zip(saved, lost, strict=True)):
                if s > 0 and extra / s < rate:
                    best, rate = (idx, option), extra / s
        if best is None:
            return None
        point[best[0]] = best[1]
    return point


def dual_bound(problem: Problem, tables: list[Array], fixed: float) -> float:
    """Returns a loss that no choice within the budget can go below, of costs that add up."""

    def value(price: float) -> float:
        spent = price * (fixed - problem.budget)
        return spent + sum(
            float((unit.losses + price * table).min())
            for unit, table in zip(problem.units, tables, strict=True)
        )

    high = 1e-12
    while value(2 * high) > value(high) and high < 1e18:
        high *= 2
    low, high = 0.0, 2 * high
    for _ in range(200):  # the dual is concave in the price
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if value(a) < value(b):
            low = a
        else:
            high = b
    return max(value((low + high) / 2), value(0.0))
