"""Plots of what a solver was given and chose."""

import numpy as np
import pytest

from regraft.passes.solver import Problem, SeparateCosts, Unit, Words, solve, solver_plots

UNITS = (
    Unit("a", np.array([0.5, 0.75, 1.0]), np.array([0.4, 0.1, 0.0])),
    Unit("b", np.array([0.5, 0.75, 1.0]), np.array([0.9, 0.5, 0.0])),
    Unit("fixed", np.array([1.0]), np.array([0.0])),
)
COSTS = SeparateCosts([unit.levels * 8 for unit in UNITS])
WORDS = Words({"a": "first", "b": "second", "fixed": "third"}, "kept", "flops")


def test_every_unit_that_has_a_choice_is_a_line_and_the_worst_comes_first() -> None:
    problem = Problem(UNITS, COSTS, 20.0)
    found = solve(problem, "dp")
    sensitivity, _ = solver_plots(problem, found.choice, WORDS)
    assert [line.name for line in sensitivity.lines] == ["second", "first"]
    assert sensitivity.lines[1].points == ((0.5, 0.4), (0.75, 0.1), (1.0, 0.0))
    levels = found.levels(problem)
    assert {line.name: line.chosen for line in sensitivity.lines} == {
        "first": (levels["a"], 0.4), "second": (levels["b"], 0.0),
    }  # fmt: skip


def test_the_frontier_falls_and_holds_the_choice_and_is_nowhere_above_uniform_levels() -> None:
    problem = Problem(UNITS, COSTS, 20.0)
    found = solve(problem, "dp")
    _, frontier = solver_plots(problem, found.choice, WORDS)
    solver, uniform = frontier.lines
    assert solver.chosen == (pytest.approx(20 / 24, abs=1e-5), found.loss)
    assert solver.chosen in solver.points or solver.chosen[1] <= solver.points[0][1]
    losses = [loss for _, loss in solver.points]
    assert losses == sorted(losses, reverse=True)
    assert solver.points[-1] == (1.0, 0.0)
    for cost, loss in uniform.points:
        assert any(c <= cost + 1e-9 and own <= loss + 1e-9 for c, own in solver.points)


def test_curves_that_were_measured_stand_in_place_of_finer_options() -> None:
    problem = Problem(UNITS, COSTS, 20.0)
    coarse = (Unit("a", np.array([0.5, 1.0]), np.array([0.4, 0.0])),)
    sensitivity, _ = solver_plots(problem, np.array([1, 2, 0]), WORDS, coarse)
    (line,) = sensitivity.lines
    assert line.points == ((0.5, 0.4), (1.0, 0.0))
    assert line.chosen == (0.75, 0.1)
