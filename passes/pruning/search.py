"""The search for sizes that meet a goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.errors import TargetError, UsageError
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.plots import Plot
from regraft.passes.protocol import Context
from regraft.passes.pruning.alike import Classes
from regraft.passes.pruning.allocate import Allocation, allocate, choose, settle
from regraft.passes.pruning.cost import CostModel
from regraft.passes.pruning.criteria import Scores
from regraft.passes.pruning.gates import Learning, kept_above, learn_thresholds
from regraft.passes.pruning.goals import Goal, what_stops
from regraft.passes.pruning.latency import Fitted, fit_latency
from regraft.passes.pruning.limits import limits_of
from regraft.passes.pruning.measured import samples_of
from regraft.passes.pruning.plan import Choice
from regraft.passes.pruning.sensitivity import Measured, PrunedLoss, Sensitivity
from regraft.passes.pruning.spectra import spectral_sizes
from regraft.passes.solver import CurveStore

Array = np.ndarray[Any, Any]

_LATENCY_FLOOR = 0.1


@dataclass(slots=True)
class Search:
    """Looks for a choice that meets a goal.

    Attributes:
        coupling: The groups.
        cost: What they cost.
        goal: What is to be reached.
        scores: Per unit.
        allocation: How sizes are chosen.
        ctx: Sources and samples.
        classes_at: What sizes may be taken, for a floor.
        floors: Least fractions of groups, tried in order.
        priced: Whether scores add up across groups.
        curves: File of measured curves, or None.
        is_rounded: Whether sizes are multiples.
        steps: Updates of learned thresholds.
        stats: Figures found on the way.
    """

    coupling: Coupling
    cost: CostModel
    goal: Goal
    scores: Scores
    allocation: Allocation
    ctx: Context
    classes_at: Callable[[float], Classes]
    floors: tuple[float, ...]
    priced: bool
    curves: str | None
    is_rounded: bool
    steps: int
    stats: dict[str, int | float] = field(default_factory=dict)
    _sensitivity: Sensitivity | None = None
    _solved: Measured | None = None
    _kept: dict[Group, int] | None = None

    def choose(self) -> Choice:
        """Returns a choice that meets the goal, with as high a floor as it can.

        Raises:
            TargetError: When there is none.
        """
        coupling, cost, goal = self.coupling, self.cost, self.goal
        if not coupling.groups:
            raise TargetError(
                f"pass `prune`: {goal} cannot be reached, every axis is pinned",
                hint=what_stops(coupling.pinned),
            )
        dense = cost.total(limits_of(coupling).high)
        if dense <= 0:
            raise TargetError(f"pass `prune`: the module has no {cost.measure} to reduce")
        achieved, least = 1.0, 1.0
        for floor in self.floors:
            classes = self.classes_at(floor)
            sizes = self._sizes(goal.fraction * dense, classes)
            achieved = cost.total(sizes) / dense
            if goal.met_by(achieved):
                return choose(coupling, sizes, self.scores)
            least = cost.total(classes.sizes(classes.limits.low)) / dense
        raise TargetError(
            f"pass `prune`: {goal} was asked for, {cost.measure}:{achieved:.4g} is "
            f"nearest (least {least:.4g}, tolerance {goal.tolerance:.0%})",
            hint=self._stopped_by(least > goal.fraction),
        )

    def plots(self) -> tuple[Plot, ...]:
        """Returns what was measured, and the choices that it allows."""
        if self._solved is None:
            return ()
        return self._solved.plots(self.coupling, self.cost.measure)

    def fit(self) -> Fitted:
        """Searches for a measured latency; one floor holds throughout.

        Raises:
            UsageError: When nothing here measures.
            TargetError: When no trial is near enough.
        """
        if self.ctx.latency is None:
            raise UsageError(
                "pass `prune`, option `target`: `latency` is measured, and nothing here measures",
                hint="use it in `regraft convert`, or target=flops:…",
            )
        floor = self.floors[0] if len(self.floors) == 1 else _LATENCY_FLOOR
        classes = self.classes_at(floor)
        dense = self.cost.total(limits_of(self.coupling).high)

        def choice_at(fraction: float) -> Choice:
            return choose(self.coupling, self._sizes(fraction * dense, classes), self.scores)

        return fit_latency(self.coupling, self.goal.fraction, choice_at, self.ctx.latency)

    def _sizes(self, budget: float, classes: Classes) -> Array:
        if self.allocation == "measured":
            return self._measured(budget, classes)
        if self.allocation == "learned":
            return self._learned(budget, classes)
        if self.allocation == "spectral":
            return spectral_sizes(self.coupling, self.cost, budget, classes)
        return allocate(
            self.coupling, self.cost, budget, classes, self.allocation, self.scores,
            priced=self.priced,
        )  # fmt: skip

    def _measured(self, budget: float, classes: Classes) -> Array:
        if self._sensitivity is None:
            if self.ctx.activations is None:
                raise UsageError(
                    "pass `prune`, option `allocation`: `measured` runs copies, and nothing here "
                    "runs them",
                    hint="use it in `regraft convert`, or allocation=global",
                )
            store = CurveStore(None if self.curves is None else Path(self.curves))
            loss = PrunedLoss(
                self.coupling, classes, self.scores, self.ctx.activations, samples_of(self.ctx)
            )
            self._sensitivity = Sensitivity(loss, store)
        found = self._solved = self._sensitivity.sizes(self.cost, budget, classes)
        self.stats["measured-losses"] = found.num_measured
        self.stats["additivity-r2"] = round(found.r_squared, 4)
        return found.sizes

    def _learned(self, budget: float, classes: Classes) -> Array:
        """Returns sizes next to those that learned thresholds leave."""
        if self._kept is None:
            learning = Learning(self.cost, budget, self.steps)
            thresholds = learn_thresholds(self.coupling, self.ctx, learning, self.scores)
            self._kept = kept_above(self.scores, thresholds)
            sizes = np.array([self._kept[group] for group in self.coupling.groups])
            self.stats["learned-cost"] = round(self.cost.total(sizes) / budget, 4)
        wanted = np.array([self._kept[group] for group in self.coupling.groups])
        return settle(self.cost, budget, classes, classes.limits.clip(classes.means(wanted)))

    def _stopped_by(self, too_small: bool) -> str:
        """Names what keeps the target out of reach."""
        if not too_small and self.is_rounded:
            return "sizes are multiples: lower `round-to`, or ask for what is near"
        if not too_small:
            return "the model is too small for a nearer size: ask for what is near"
        if len(self.floors) == 1 and self.floors[0]:
            return f"`min-keep` holds {self.floors[0]:g} of every group: lower it"
        return what_stops(self.coupling.pinned)
