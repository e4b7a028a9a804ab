"""The budget solver: equal to brute force where that can be tried, near it elsewhere."""

from typing import Any

import numpy as np
import pytest

from regraft.ir.errors import TargetError, UsageError
from regraft.passes.solver import (
    METHODS,
    PairwiseCosts,
    Problem,
    SeparateCosts,
    Unit,
    solve,
)

Array = np.ndarray[Any, Any]


def units(rng: np.random.Generator, count: int, options: int) -> tuple[Unit, ...]:
    """Returns units with falling losses, not all convex."""
    levels = np.arange(1, options + 1) / options
    made = []
    for idx in range(count):
        scale = 10 ** rng.uniform(-2, 1)
        steps = rng.exponential(1, options - 1) * rng.uniform(0.2, 3, options - 1)
        losses = scale * np.append(np.cumsum(steps[::-1])[::-1], 0.0)
        made.append(Unit(f"u{idx}", levels, losses))
    return tuple(made)


def separate(seed: int, count: int = 6, options: int = 5, *, whole: bool = True) -> Problem:
    rng = np.random.default_rng(seed)
    made = units(rng, count, options)
    sizes = rng.integers(1, 30, count) if whole else rng.uniform(1, 30, count)
    tables = [size * np.arange(1, options + 1.0) for size in sizes]
    whole_cost = sum(float(table[-1]) for table in tables) + 7
    return Problem(made, SeparateCosts(tables, 7.0), whole_cost * rng.uniform(0.35, 0.9))


def coupled(seed: int, count: int = 6, options: int = 5) -> Problem:
    """Costs of a chain: each unit with the next, as layers of widths have, and one skip."""
    rng = np.random.default_rng(seed)
    made = units(rng, count, options)
    widths = rng.integers(8, 64, count)
    levels = made[0].levels
    tables = [10.0 * width * levels for width in widths]
    pairs = {
        (i, i + 1): np.outer(levels * widths[i], levels * widths[i + 1]) for i in range(count - 1)
    }
    pairs[0, count - 1] = np.outer(levels * widths[0], levels * widths[-1])
    costs = PairwiseCosts(tables, pairs, 100.0)
    whole = costs.total(np.full(count, options - 1))
    return Problem(made, costs, whole * rng.uniform(0.35, 0.9))


@pytest.mark.parametrize("seed", range(20))
def test_the_programme_equals_brute_force_for_whole_costs(seed: int) -> None:
    problem = separate(seed)
    exact = solve(problem, "exhaustive")
    found = solve(problem, "dp")
    assert found.loss == pytest.approx(exact.loss, abs=1e-12)
    assert found.cost <= problem.budget * (1 + 1e-9)
    assert found.bound <= exact.loss + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_the_programme_is_near_brute_force_for_other_costs(seed: int) -> None:
    problem = separate(seed, whole=False)
    exact, found = solve(problem, "exhaustive"), solve(problem, "dp")
    assert found.loss <= exact.loss * 1.02
    assert found.cost <= problem.budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_milp_equals_brute_force(seed: int) -> None:
    for problem in (separate(seed, 5, 4), coupled(seed, 5, 4)):
        exact, found = solve(problem, "exhaustive"), solve(problem, "milp")
        assert found.loss == pytest.approx(exact.loss, rel=1e-5)
        assert found.cost <= problem.budget * (1 + 1e-6)
        assert found.gap <= 1e-4


@pytest.mark.parametrize("seed", range(30))
def test_the_programme_is_within_two_percent_of_the_optimum_of_coupled_costs(seed: int) -> None:
    problem = coupled(seed)
    exact, found = solve(problem, "exhaustive"), solve(problem, "dp")
    assert found.cost <= problem.budget * (1 + 1e-9)
    assert found.loss <= exact.loss * 1.02 + 1e-12


@pytest.mark.parametrize("method", ["uniform", "global", "dp"])
@pytest.mark.parametrize("seed", range(5))
def test_every_method_fits_and_none_beats_brute_force(method: str, seed: int) -> None:
    for problem in (separate(seed), coupled(seed)):
        exact, found = solve(problem, "exhaustive"), solve(problem, method)
        assert found.cost <= problem.budget * (1 + 1e-9)
        assert found.loss >= exact.loss - 1e-12


def test_the_programme_beats_the_baselines_on_average() -> None:
    ratios: dict[str, list[float]] = {"uniform": [], "global": []}
    for seed in range(20):
        problem = coupled(seed, 12, 8)
        best = solve(problem, "dp").loss
        for method, each in ratios.items():
            each.append(solve(problem, method).loss / best)
    assert min(ratios["uniform"]) >= 1
    assert np.mean(ratios["uniform"]) > 1.5
    assert min(ratios["global"]) >= 1 - 1e-9
    assert np.mean(ratios["global"]) > 1


def test_uniform_keeps_one_level() -> None:
    problem = separate(3)
    choice = solve(problem, "uniform").choice
    assert len(set(choice.tolist())) == 1


def test_spectral_takes_more_of_units_of_larger_weight() -> None:
    problem = separate(1, 6, 20)
    weights = np.array([0.7, 0.7, 0.7, 1.3, 1.3, 1.3])
    levels = list(solve(problem, "spectral", weights=weights).levels(problem).values())
    assert max(levels[3:]) < min(levels[:3])
    alike = solve(problem, "spectral", weights=np.ones(6))
    assert alike.choice.tolist() == solve(problem, "uniform").choice.tolist()


def test_a_large_problem_is_solved_in_seconds_with_a_small_gap() -> None:
    problem = separate(0, 300, 20, whole=False)
    found = solve(problem, "dp")
    assert found.cost >= 0.99 * problem.budget
    assert 0 <= found.gap <= 0.01


def test_a_budget_for_all_takes_all() -> None:
    problem = separate(0)
    rich = Problem(problem.units, problem.costs, 1e9)
    for method in ("dp", "milp", "uniform", "global", "exhaustive"):
        assert solve(rich, method).loss == 0


@pytest.mark.parametrize("method", [m for m in METHODS if m != "spectral"])
def test_a_budget_out_of_reach_names_the_least(method: str) -> None:
    problem = separate(0)
    poor = Problem(problem.units, problem.costs, 8.0)
    with pytest.raises(TargetError, match="is the least that the units can cost"):
        solve(poor, method)


def test_wrong_uses_are_usage_errors() -> None:
    problem = separate(0)
    with pytest.raises(UsageError, match="unknown solver"):
        solve(problem, "milb")
    with pytest.raises(UsageError, match="one weight per unit"):
        solve(problem, "spectral")
    with pytest.raises(UsageError, match="too many"):
        solve(separate(0, 30, 8), "exhaustive")
    with pytest.raises(UsageError, match="do not ascend"):
        Unit("u", np.array([1.0, 0.5]), np.zeros(2))
    with pytest.raises(UsageError, match="levels and"):
        Unit("u", np.array([1.0, 2.0]), np.zeros(3))
    with pytest.raises(UsageError, match="not all numbers"):
        Unit("u", np.array([1.0]), np.array([np.nan]))


def test_marginal_costs_are_those_of_changed_choices() -> None:
    for problem in (separate(2), coupled(2)):
        rng = np.random.default_rng(0)
        choice = rng.integers(0, 5, len(problem.units))
        for idx, table in enumerate(problem.costs.marginal(choice)):
            for option in range(5):
                other = choice.copy()
                other[idx] = option
                assert table[option] == pytest.approx(problem.costs.total(other))


def test_the_same_problem_has_the_same_solution() -> None:
    for method in ("dp", "milp", "global"):
        first, second = (solve(coupled(5), method).choice for _ in range(2))
        assert first.tolist() == second.tolist()
