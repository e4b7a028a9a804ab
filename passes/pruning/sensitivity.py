"""What every group loses when it is cut alone, measured on samples, and the sizes that follow.

Curves are measured by running pruned copies; the budget solver then allocates. Costs of groups
multiply (rows times columns), so the solver takes them at the current point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.plots import Plot
from regraft.passes.protocol import ActivationSource, Samples
from regraft.passes.pruning.alike import Classes
from regraft.passes.pruning.allocate import choose, settle
from regraft.passes.pruning.cost import Cost
from regraft.passes.pruning.criteria import Scores
from regraft.passes.pruning.plan import Choice, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module
from regraft.passes.solver import (
    CurveStore,
    Problem,
    Unit,
    Words,
    additivity,
    measure_curves,
    solve,
    solver_plots,
)

Array = np.ndarray[Any, Any]

LEVELS = (0.5, 0.75, 0.9, 1.0)
"""Where curves are measured; between them they are straight, below they go on as they began."""

_STEPS = 24
"""Sizes of each class that the solver chooses among, at most."""

_JOINT = 6
_LEAST_JOINT = 0.75
"""Joint choices on which it is measured whether losses add up, and the least level in them."""


class PrunedLoss:
    """The error of a pruned copy's outputs, relative to their energy: mean over float outputs.

    Those of a final softmax or sigmoid count before it.

    Args:
        coupling: Of the module.
        classes: Groups that keep the same fraction; the unit `c3` is class 3.
        scores: Which units of a group go first.
        source: Runs copies.
        samples: What they run on.
    """

    def __init__(
        self,
        coupling: Coupling,
        classes: Classes,
        scores: Scores,
        source: ActivationSource,
        samples: Samples,
    ) -> None:
        self.coupling = coupling
        self.classes = classes
        self.scores = scores
        self.outputs = OutputError(coupling.module, source, samples, "pass `prune`")
        self.fingerprint = self._hash()

    def loss(self, levels: Mapping[str, float]) -> float:
        """Returns the error when classes keep fractions of their units, by name."""
        limits = self.classes.limits
        wanted = limits.high.astype(np.float64)
        for name, level in levels.items():
            wanted[int(name.removeprefix("c"))] *= level
        sizes = self.classes.sizes(np.rint(wanted).astype(np.int64))
        return self.outputs.error(self._pruned(choose(self.coupling, sizes, self.scores)))

    def _pruned(self, choice: Choice) -> Module:
        copy = self.coupling.module.clone()
        trial = Coupling(copy)
        slice_module(trial, choice_of(make_plan(self.coupling, choice), trial))
        drop_dead_code(copy)
        return copy

    def _hash(self) -> str:
        """Returns a hash of the module's outputs, scores and classes: what losses depend on."""
        digest = hashlib.sha256(str(self.coupling.module.graph).encode())
        for array in (*self.outputs.dense, *(self.scores[group] for group in self.coupling.groups)):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.classes.of.tobytes() + self.classes.scale.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class ClassCosts:
    """Costs of a solver's choice, from those of groups.

    Args:
        cost: Of groups.
        classes: What sizes stand for.
        options: i64[options] per class.
    """

    cost: Cost
    classes: Classes
    options: tuple[Array, ...]

    def total(self, choice: Array) -> float:
        """Returns the cost of one option per class."""
        return self.cost.total(self.classes.sizes(self._sizes(choice)))

    def marginal(self, choice: Array) -> list[Array]:
        """Returns the totals for each option of every class."""
        sizes = self._sizes(choice)
        result = []
        for idx, each in enumerate(self.options):
            own = sizes[idx]
            totals = []
            for size in each:
                sizes[idx] = size
                totals.append(self.cost.total(self.classes.sizes(sizes)))
            sizes[idx] = own
            result.append(np.array(totals))
        return result

    def _sizes(self, choice: Array) -> Array:
        return np.array([each[k] for each, k in zip(self.options, choice, strict=True)], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Sizes that a solver chose, i64[groups], with how well losses added up.

    Args:
        sizes: Of every group.
        num_measured: Levels that had to be measured.
        r_squared: Of joint losses against sums.
        curves: What classes lose alone.
        problem: What was solved.
        choice: The options next to the sizes.
        classes: Whose sizes were chosen.
    """

    sizes: Array
    num_measured: int
    r_squared: float
    curves: tuple[Unit, ...]
    problem: Problem
    choice: Array
    classes: Classes

    def plots(self, coupling: Coupling, measure: str) -> tuple[Plot, ...]:
        """Returns what every class loses alone, and the least loss at every budget.

        Args:
            coupling: Whose groups are meant.
            measure: What the budget counts.
        """
        members: dict[str, list[Group]] = {unit.name: [] for unit in self.problem.units}
        for group, idx in zip(coupling.groups, self.classes.of, strict=True):
            members[f"c{idx}"].append(group)
        names = {name: _class_name(groups) for name, groups in members.items()}
        words = Words(names, "fraction of units kept", measure)
        return solver_plots(self.problem, self.choice, words, self.curves)


class Sensitivity:
    """Curves of a module, measured when first asked for; budgets are then solved at once.

    Args:
        loss: Measures.
        store: Measurements known.
        progress: Told how many levels are measured, of how many.
    """

    def __init__(
        self,
        loss: PrunedLoss,
        store: CurveStore,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.loss = loss
        self.store = store
        classes = loss.classes
        levels = {
            f"c{idx}": _levels(int(high))
            for idx, (low, high) in enumerate(
                zip(classes.limits.low, classes.limits.high, strict=True)
            )
            if low < high
        }
        self.curves = {unit.name: unit for unit in measure_curves(loss, levels, store, progress)}
        joint = additivity(
            loss, tuple(self.curves.values()), store, count=_JOINT, least=_LEAST_JOINT
        )
        self.r_squared = joint.r_squared

    def sizes(self, cost: Cost, budget: float, classes: Classes) -> Measured:
        """Returns sizes next to a budget that lose least, as far as curves tell.

        Args:
            cost: Of groups.
            budget: What is wanted.
            classes: The same classes, with other bounds perhaps.
        """
        options, units = [], []
        for idx in range(len(classes.limits.high)):
            sizes = class_options(classes, idx)
            options.append(sizes)
            curve = self.curves.get(f"c{idx}")
            levels = sizes / classes.limits.high[idx]
            losses = np.zeros(len(sizes)) if curve is None else _between(curve, levels)
            units.append(Unit(f"c{idx}", levels, losses))
        problem = Problem(tuple(units), ClassCosts(cost, classes, tuple(options)), budget)
        reachable = problem.fits(problem.cheapest)
        choice = solve(problem, "dp").choice if reachable else problem.cheapest
        sizes = np.array([each[k] for each, k in zip(options, choice, strict=True)], np.int64)
        settled = settle(cost, budget, classes, sizes)
        nearest = [
            int(np.abs(each - size).argmin())
            for each, size in zip(options, classes.means(settled), strict=True)
        ]
        return Measured(
            settled, self.store.num_measured, self.r_squared, tuple(self.curves.values()), problem,
            np.array(nearest), classes,
        )  # fmt: skip


def _class_name(groups: Sequence[Group]) -> str:
    """Returns what a class is called: its first group, and the first weight that has it."""
    first = groups[0]
    text = first.name if len(groups) == 1 else f"{first.name} and {len(groups) - 1} alike"
    return f"{text}: {first.weights[0][0]}" if first.weights else text


def _levels(size: int) -> tuple[float, ...]:
    """Returns the fractions to measure, of whole units."""
    return tuple(sorted({max(round(level * size), 1) / size for level in LEVELS}))


def class_options(classes: Classes, idx: int) -> Array:
    """Returns the sizes that a class may take, thinned out where there are many."""
    limits = classes.limits
    low, high, step = (int(each[idx]) for each in (limits.low, limits.high, limits.step))
    sizes = np.unique(np.append(np.arange(-(-low // step) * step, high + 1, step), [low, high]))
    if len(sizes) <= _STEPS:
        return sizes
    places = np.unique(np.rint(np.linspace(0, len(sizes) - 1, _STEPS)).astype(np.int64))
    return sizes[places]


def _between(curve: Unit, levels: Array) -> Array:
    """Returns losses between measured levels; below the first they grow as steeply as there."""
    found = np.interp(levels, curve.levels, curve.losses)
    if curve.count < 2:
        return np.asarray(found)
    slope = (curve.losses[1] - curve.losses[0]) / (curve.levels[1] - curve.levels[0])
    below = levels < curve.levels[0]
    found[below] = curve.losses[0] + slope * (levels[below] - curve.levels[0])
    return np.asarray(found)
