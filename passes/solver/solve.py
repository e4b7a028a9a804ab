"""One entry for all solvers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from regraft.ir.errors import TargetError, UsageError
from regraft.passes.pipeline import suggest
from regraft.passes.solver.baselines import brute_force, by_rate, by_sparsity, dual_bound, uniform
from regraft.passes.solver.dynamic import dynamic_programme
from regraft.passes.solver.problem import Choice, Problem, SeparateCosts, Solution, solution

Array = np.ndarray[Any, Any]
Method = Literal["dp", "milp", "uniform", "global", "spectral", "exhaustive"]
METHODS: tuple[str, ...] = get_args(Method)

_SIMPLE: Mapping[str, Callable[[Problem], Choice | None]] = {
    "dp": dynamic_programme,
    "uniform": uniform,
    "global": by_rate,
    "exhaustive": brute_force,
}


def solve(
    problem: Problem,
    method: str = "dp",
    *,
    weights: Array | None = None,
    time_limit_s: float = 60.0,
) -> Solution:
    """Returns the choice of a method.

    Args:
        problem: Units, costs, budget.
        method: `dp` (dynamic programme), `milp` (exact, through HiGHS), `uniform` (one level),
            `global` (least loss per cost first), `spectral` (what goes is in the proportions of
            `weights`), `exhaustive`.
        weights: f64[units]: proportions of `spectral`, such as those of `spectral_weights`.
        time_limit_s: Of `milp`.

    Raises:
        UsageError: For an unknown method, or costs that it cannot take.
        TargetError: When no choice is within the budget.
    """
    bound = -np.inf
    choice: Choice | None
    if method == "milp":
        # HiGHS takes a third of a second to import
        from regraft.passes.solver.milp import mixed_integer

        found = mixed_integer(problem, time_limit_s=time_limit_s)
        choice, bound = (None, bound) if found is None else found
    elif method == "spectral":
        if weights is None or len(weights) != len(problem.units):
            raise UsageError("solver `spectral` needs one weight per unit")
        choice = by_sparsity(problem, weights)
    elif method in _SIMPLE:
        choice = _SIMPLE[method](problem)
    else:
        raise UsageError(f"unknown solver `{method}`", hint=suggest(method, METHODS))
    if choice is None:
        least = problem.costs.total(problem.cheapest)
        raise TargetError(
            f"no choice is within the budget: {problem.budget:.6g} was asked for, {least:.6g} is "
            "the least that the units can cost",
            hint="ask for what is near, or give units cheaper options",
        )
    if method == "exhaustive":
        bound = problem.loss(choice)
    elif method != "milp" and isinstance(problem.costs, SeparateCosts):
        tables = [np.asarray(table, np.float64) for table in problem.costs.tables]
        bound = dual_bound(problem, tables, problem.costs.fixed)
    return solution(problem, method, choice, bound)
