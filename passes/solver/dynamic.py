"""Rate-distortion optimal allocation by a dynamic programme.

`g[l][c] = min_r g[l-1][c - cost_l(r)] + loss_l(r)` over bins of cost. Where costs couple, they are
taken at the current point and the programme runs again, a few times; what takes the best rate
first is a second start. Single moves and exchanges of two then polish.

Source: Xu et al., Efficient Joint Optimization of Layer-Adaptive Weight Pruning, 2023, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.solver.baselines import at_level, by_rate, lowered
from regraft.passes.solver.problem import Choice, Problem, SeparateCosts

Array = np.ndarray[Any, Any]

BINS = 4000
_BINS_PER_UNIT = 100
"""Of the budget: costs are rounded up, by half a bin for each unit on average."""

_ROUNDS = 12
_MAX_POLISHED = 64
"""Exchanges of two are tried up to this many units."""


def dynamic_programme(problem: Problem) -> Choice | None:
    """Returns the choice found, None where even the cheapest does not fit.

    Cost: O(rounds * bins * options).
    """
    if not problem.fits(problem.cheapest):
        return None
    if problem.fits(problem.dearest) and _is_falling(problem):
        return problem.dearest
    bins = max(BINS, _BINS_PER_UNIT * len(problem.units))
    separate = isinstance(problem.costs, SeparateCosts)
    best = problem.cheapest
    point, asked = _start(problem), problem.budget
    for _ in range(1 if separate else _ROUNDS):
        total = problem.costs.total(point)
        tables = problem.costs.marginal(point)
        # what is spent beside the units, at this point: a plane through it
        fixed = total - sum(float(t[k] - t.min()) for t, k in zip(tables, point, strict=True))
        choice = _programme(problem, [t - t.min() for t in tables], asked - fixed, bins)
        if choice is None:
            asked += 0.5 * (problem.budget - asked) + 0.02 * problem.budget
            point = best
            continue
        found = problem.costs.total(choice)
        fitting = choice if problem.fits(choice) else lowered(problem, choice)
        if fitting is not None and problem.loss(fitting) < problem.loss(best):
            best = fitting
        # what the plane misjudged is asked for less, or more, next time
        asked += problem.budget - found
        asked = float(np.clip(asked, 0.25 * problem.budget, 2 * problem.budget))
        if np.array_equal(choice, point):
            break
        point = choice
    best = polish(problem, best)
    greedy = None if separate else by_rate(problem)
    if greedy is None:
        return best
    other = polish(problem, greedy)
    return other if problem.loss(other) < problem.loss(best) else best


def _is_falling(problem: Problem) -> bool:
    """Returns whether keeping most never loses more than keeping less."""
    return all(unit.losses[-1] <= unit.losses.min() for unit in problem.units)


def _start(problem: Problem) -> Choice:
    """Returns the middle between all and nothing whose cost is near the budget."""
    low, high = 0.0, 1.0
    point = problem.cheapest
    for _ in range(20):
        middle = (low + high) / 2
        tried = at_level(problem, np.full(len(problem.units), middle))
        if problem.fits(tried):
            low, point = middle, tried
        else:
            high = middle
    return point


def _programme(problem: Problem, tables: list[Array], budget: float, bins: int) -> Choice | None:
    """Returns the best choice whose costs, rounded up to bins, are within the budget."""
    if budget < 0:
        return None
    width = _bin_width(tables, budget, bins)
    count = int(budget / width + 1e-6) + 1 if width > 0 else 1
    least = np.zeros(count)
    taken = np.zeros((len(tables), count), np.int32)
    for idx, (unit, table) in enumerate(zip(problem.units, tables, strict=True)):
        steps = np.ceil(table / width - 1e-6).astype(np.int64) if width > 0 else table * 0
        found = np.full(count, np.inf)
        for option, step in enumerate(steps.astype(np.int64)):
            if step >= count:
                continue
            candidate = least[: count - step] + unit.losses[option]
            part = found[step:]
            better = candidate < part
            part[better] = candidate[better]
            taken[idx, step:][better] = option
        least = found
    if not np.isfinite(least).any():
        return None
    choice = np.zeros(len(tables), np.int64)
    place = int(np.argmin(least))
    for idx in range(len(tables) - 1, -1, -1):
        option = int(taken[idx, place])
        choice[idx] = option
        place -= int(np.ceil(tables[idx][option] / width - 1e-6)) if width > 0 else 0
    return choice


def _bin_width(tables: list[Array], budget: float, bins: int) -> float:
    """Returns the width of a bin: 1 or a common divisor of whole costs where that is exact."""
    values = np.unique(np.concatenate([*tables, [0.0]]))
    whole = np.rint(values)
    if np.abs(values - whole).max() < 1e-9 and len(values) > 1:
        divisor = float(np.gcd.reduce(whole.astype(np.int64)))
        if divisor > 0 and budget / divisor <= 4 * bins:
            return divisor
    return budget / bins if budget > 0 else 1.0


def polish(problem: Problem, choice: Choice) -> Choice:
    """Takes single moves, and exchanges of two units, while they lose less within the budget."""
    point = choice.copy()
    improved = True
    while improved:
        improved = _move(problem, point) or _exchange(problem, point)
    return point


def _move(problem: Problem, point: Choice) -> bool:
    tables = problem.costs.marginal(point)
    best, gain = None, 1e-15
    for idx, unit in enumerate(problem.units):
        fitting = tables[idx] <= problem.budget * (1 + 1e-9)
        gained = np.where(fitting, unit.losses[point[idx]] - unit.losses, -np.inf)
        option = int(np.argmax(gained))
        if gained[option] > gain:
            best, gain = (idx, option), float(gained[option])
    if best is None:
        return False
    point[best[0]] = best[1]
    return True


def _exchange(problem: Problem, point: Choice) -> bool:
    """Takes the first pair of moves that gains: one unit down, another up."""
    if len(problem.units) > _MAX_POLISHED:
        return False
    total = problem.costs.total(point)
    tables = problem.costs.marginal(point)
    for down, unit in enumerate(problem.units):
        for option in range(int(point[down]) - 1, -1, -1):
            lost = unit.losses[option] - unit.losses[point[down]]
            room = problem.budget * (1 + 1e-9) - float(tables[down][option])
            # only units whose next step could fit at the present point are tried in earnest
            for up, other in enumerate(problem.units):
                if up == down:
                    continue
                gained = other.losses[point[up]] - other.losses
                extra = tables[up] - total
                for candidate in np.flatnonzero((gained > lost + 1e-15) & (extra <= 2 * room)):
                    tried = point.copy()
                    tried[down], tried[up] = option, candidate
                    if problem.fits(tried):
                        point[:] = tried
                        return True
    return False
