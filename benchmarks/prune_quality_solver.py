"""The budget solver against brute force, on chains of layers whose widths multiply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_most, held, shown
from regraft.passes.solver import PairwiseCosts, Problem, SeparateCosts, Unit, solve

Array = np.ndarray[Any, Any]

SEEDS = range(100, 125)
"""None of them is among those that tests solve."""
UNITS, OPTIONS = 6, 5
BAR = 2.0


def _units(rng: np.random.Generator) -> tuple[Unit, ...]:
    """Returns units whose losses fall with what they keep; curves are not all convex."""
    levels = np.arange(1, OPTIONS + 1) / OPTIONS
    made = []
    for idx in range(UNITS):
        steps = rng.gamma(0.7, size=OPTIONS - 1) * 10 ** rng.uniform(-2, 1)
        made.append(Unit(f"layer {idx}", levels, np.append(np.cumsum(steps[::-1])[::-1], 0.0)))
    return tuple(made)


def _separate(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    units = _units(rng)
    tables = [size * np.arange(1, OPTIONS + 1.0) for size in rng.integers(1, 40, UNITS)]
    whole = sum(float(table[-1]) for table in tables)
    return Problem(units, SeparateCosts(tables), whole * rng.uniform(0.35, 0.9))


def _chain(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    units = _units(rng)
    sizes = [width * units[0].levels for width in rng.integers(8, 128, UNITS)]
    pairs = {(i, i + 1): np.outer(sizes[i], sizes[i + 1]) for i in range(UNITS - 1)}
    costs = PairwiseCosts([3.0 * each for each in sizes], pairs)
    whole = costs.total(np.full(UNITS, OPTIONS - 1))
    return Problem(units, costs, whole * rng.uniform(0.35, 0.9))


def _solver(settings: Settings) -> Iterator[Row]:
    equal = 0
    for seed in SEEDS:
        problem = _separate(seed)
        exact, found = solve(problem, "exhaustive"), solve(problem, "dp")
        equal += abs(found.loss - exact.loss) <= 1e-9 * max(exact.loss, 1e-9)
    note = f"{equal} of {len(SEEDS)} problems of {UNITS} units, {OPTIONS} options"
    yield held("DP equals brute force on whole separate costs", equal == len(SEEDS), note)
    gaps = []
    for seed in SEEDS:
        problem = _chain(seed)
        exact, found = solve(problem, "exhaustive"), solve(problem, "dp")
        gaps.append(100 * (found.loss / max(exact.loss, 1e-12) - 1))
    what = "DP above the exhaustive optimum of coupled costs"
    yield at_most(f"{what}, worst", max(gaps), BAR, "%", f"{len(SEEDS)} problems")
    yield shown(f"{what}, mean", float(np.mean(gaps)), "%")


MEASUREMENTS: tuple[Measurement, ...] = (Measurement("solver", "DP against brute force", _solver),)
