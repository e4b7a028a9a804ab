"""Units with options, what they cost together, and a budget: the problem that solvers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from regraft.ir.errors import UsageError

Array = np.ndarray[Any, Any]
Choice = Array
"""i64[units]: the option of every unit."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One thing of which more or less may be kept: a layer, a group of channels, a weight.

    Args:
        name: Unique among the units of a problem.
        levels: f64[options], ascending: how much of the unit each option keeps, 1 for all of it
            (a fraction of channels, bits over bits before, 0 or 1 for a layer).
        losses: f64[options]: what taking the option alone loses, in units of the whole problem.
        labels: A word per option for reports, such as `int4`.
    """

    name: str
    levels: Array
    losses: Array
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that curves are curves."""
        if len(self.levels) != len(self.losses) or not len(self.levels):
            raise UsageError(
                f"unit `{self.name}` has {len(self.levels)} levels and {len(self.losses)} losses"
            )
        if (np.diff(self.levels) <= 0).any():
            raise UsageError(f"unit `{self.name}`: its levels {self.levels} do not ascend")
        if not np.isfinite(self.losses).all():
            raise UsageError(f"unit `{self.name}`: its losses {self.losses} are not all numbers")

    @property
    def count(self) -> int:
        """Number of options."""
        return len(self.levels)


class Costs(Protocol):
    """What options cost together, in the unit of the budget."""

    def total(self, choice: Choice) -> float:
        """Returns the cost of one option per unit."""

    def marginal(self, choice: Choice) -> list[Array]:
        """Returns, per unit, the total cost for each of its options, others as chosen."""


@dataclass(frozen=True, slots=True, eq=False)
class SeparateCosts:
    """Costs that add up.

    Args:
        tables: f64[options] per unit.
        fixed: What is spent whatever is chosen.
    """

    tables: Sequence[Array]
    fixed: float = 0.0

    def total(self, choice: Choice) -> float:
        """Returns the sum of the options' costs."""
        return self.fixed + sum(
            float(table[k]) for table, k in zip(self.tables, choice, strict=True)
        )

    def marginal(self, choice: Choice) -> list[Array]:
        """Returns the totals for each option of every unit."""
        total = self.total(choice)
        return [total - table[k] + table for table, k in zip(self.tables, choice, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class PairwiseCosts:
    """Costs of single units and of pairs: a product costs rows times columns.

    Args:
        tables: f64[options] per unit.
        pairs: (i, j) -> f64[options of i, options of j], each pair once.
        fixed: What is spent whatever is chosen.
    """

    tables: Sequence[Array]
    pairs: Mapping[tuple[int, int], Array] = field(default_factory=dict)
    fixed: float = 0.0

    def total(self, choice: Choice) -> float:
        """Returns the sum over units and pairs."""
        single = SeparateCosts(self.tables, self.fixed).total(choice)
        return single + sum(float(t[choice[i], choice[j]]) for (i, j), t in self.pairs.items())

    def marginal(self, choice: Choice) -> list[Array]:
        """Returns the totals for each option of every unit."""
        single = SeparateCosts(self.tables, self.fixed).marginal(choice)
        coupled = sum(float(t[choice[i], choice[j]]) for (i, j), t in self.pairs.items())
        result = [np.asarray(table + coupled, np.float64) for table in single]
        for (i, j), table in self.pairs.items():
            now = table[choice[i], choice[j]]
            result[i] += table[:, choice[j]] - now
            result[j] += table[choice[i], :] - now
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Choose one option per unit: the least loss whose cost is within the budget.

    Args:
        units: The units.
        costs: What options cost.
        budget: What may be spent.
    """

    units: tuple[Unit, ...]
    costs: Costs
    budget: float

    @property
    def dearest(self) -> Choice:
        """The option that keeps most, of every unit."""
        return np.array([unit.count - 1 for unit in self.units], np.int64)

    @property
    def cheapest(self) -> Choice:
        """The option that keeps least, of every unit."""
        return np.zeros(len(self.units), np.int64)

    def loss(self, choice: Choice) -> float:
        """Returns the sum of the options' losses."""
        return float(sum(float(unit.losses[k]) for unit, k in zip(self.units, choice, strict=True)))

    def fits(self, choice: Choice) -> bool:
        """Returns whether a choice is within the budget, but for rounding."""
        return self.costs.total(choice) <= self.budget * (1 + 1e-9)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What a solver found.

    Args:
        method: The solver.
        choice: i64[units].
        cost: Of the choice.
        loss: Of the choice, as the units' curves add up.
        bound: No choice within the budget loses less than this, as far as the solver knows.
    """

    method: str
    choice: Choice
    cost: float
    loss: float
    bound: float = -np.inf

    @property
    def gap(self) -> float:
        """How much more is lost than the bound allows, relative; inf where none is known."""
        if not np.isfinite(self.bound):
            return float("inf")
        return (self.loss - self.bound) / max(abs(self.loss), 1e-30) if self.loss else 0.0

    def levels(self, problem: Problem) -> dict[str, float]:
        """Returns what every unit keeps, by name."""
        return {
            unit.name: float(unit.levels[k])
            for unit, k in zip(problem.units, self.choice, strict=True)
        }


def solution(problem: Problem, method: str, choice: Choice, bound: float = -np.inf) -> Solution:
    """Returns a choice with its cost and loss."""
    return Solution(method, choice, problem.costs.total(choice), problem.loss(choice), bound)
