"""What a solver was given and what it chose, as plots for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.passes.plots import Line, Plot, Point
from regraft.passes.solver.problem import Choice, Problem, Unit
from regraft.passes.solver.solve import solve

Array = np.ndarray[Any, Any]

_BUDGETS = 8
"""Budgets that are solved for a frontier, its ends among them."""

_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Words:
    """How plots speak of a problem.

    Args:
        names: What units are called, by their names.
        levels: What a level counts, such as `numbers kept`.
        costs: What the budget counts, such as `flops`.
    """

    names: Mapping[str, str]
    levels: str
    costs: str


def solver_plots(
    problem: Problem, choice: Choice, words: Words, curves: Sequence[Unit] | None = None
) -> tuple[Plot, Plot]:
    """Returns what every unit loses alone, and the least loss at every budget.

    Args:
        problem: What was solved.
        choice: What was taken.
        words: How to speak of it.
        curves: The units as they were measured, where the problem's have options between.
    """
    chosen = {
        unit.name: (float(unit.levels[k]), float(unit.losses[k]))
        for unit, k in zip(problem.units, choice, strict=True)
    }
    shown = problem.units if curves is None else curves
    return _sensitivity(shown, words, chosen), _frontier(problem, choice, words.costs)


def _sensitivity(curves: Sequence[Unit], words: Words, chosen: Mapping[str, Point]) -> Plot:
    """Returns what every unit loses alone, the one that loses most first."""
    lines = [
        Line(words.names[unit.name], _points(unit.levels, unit.losses), _rounded(chosen[unit.name]))
        for unit in curves
        if unit.count > 1
    ]
    lines.sort(key=lambda line: -max((y for _, y in line.points), default=0.0))
    return Plot(
        "Sensitivity", words.levels, "error of the outputs", tuple(lines),
        "Every line is one unit, all others whole; its mark is what the unit was given.",
    )  # fmt: skip


def _frontier(problem: Problem, chosen: Choice, costs: str) -> Plot:
    """Returns the least loss for budgets between the cheapest choice and the dearest.

    Uniform levels stand beside it. Cost: a solution for each of a few budgets.
    """
    least, most = (
        problem.costs.total(each) for each in (problem.cheapest, problem.dearest)
    )  # fmt: skip
    budgets = np.linspace(least, most, _BUDGETS)
    lines = []
    for method, name in (("dp", "solver"), ("uniform", "uniform")):
        found = [solve(replace(problem, budget=float(each)), method) for each in budgets]
        kept = np.unique([(each.cost, each.loss) for each in found], axis=0)
        lines.append(Line(name, _points(kept[:, 0] / most, kept[:, 1])))
    mark = (problem.costs.total(chosen) / most, problem.loss(chosen))
    lines[0] = replace(lines[0], chosen=_rounded(mark))
    return Plot(
        "Cost and loss", f"{costs}, of the whole", "sum of the units' errors", tuple(lines),
        "The solver's choice at every budget, and the same level for all units.",
    )  # fmt: skip


def _points(x: Array, y: Array) -> tuple[Point, ...]:
    return tuple(
        (round(float(a), _DIGITS), float(f"{b:.{_DIGITS}g}")) for a, b in zip(x, y, strict=True)
    )


def _rounded(point: Point) -> Point:
    return _points(np.array(point[:1]), np.array(point[1:]))[0]
