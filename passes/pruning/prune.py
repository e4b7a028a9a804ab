"""The pass `prune`: removes whole channels, neurons, heads and widths, to a stated budget."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.errors import TargetError, UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling, Group, PinnedSpace
from regraft.passes.check.samples import input_symbols
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.pipeline import suggest
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip, Target
from regraft.passes.pruning.allocate import Allocation, allocate, choose, limits_of
from regraft.passes.pruning.cost import MEASURES, CostModel, cost_model
from regraft.passes.pruning.criteria import (
    Criterion,
    Normalization,
    Reduction,
    Scores,
    score,
)
from regraft.passes.pruning.latency import LATENCY_TOLERANCE, Fitted, fit_latency
from regraft.passes.pruning.plan import Choice, Plan, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module

Array = np.ndarray[Any, Any]

_FREE_TOLERANCE = 0.01
_ROUNDED_TOLERANCE = 0.02
"""How far the achieved cost may be from the target, relative; wider when sizes are rounded."""

_DEFAULT_SIZE = 128

LATENCY = "latency"

_FLOORS = (0.1, 0.05, 0.025, 0.0)
"""Fractions of every group that stay at least, tried in order: a layer that is cut to a unit or
two costs more quality than its cost is worth, whatever its scores say."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Removes channels, neurons, heads and widths everywhere at once, to a stated budget.

    ## What it does
    Finds every row of positions that may be dropped and all axes that must lose them together
    (the coupling), scores the units from their weights, chooses how many each group keeps so that
    the target is met, and slices weights, sizes and attributes. Sliced weights are derived: where
    each element came from stays known. Heads, groups and scales are written from the plan, so
    that no reshape regroups heads and attention keeps its scale.

    ## When it applies
    To every module. Positions that the model's inputs and outputs show, that an operator reads in
    order, or that it has no rule for, are pinned; each is listed with its reason. Run
    `canonicalize` and `fuse` before: recognized attention and normalization prune further.

    ## Example
    ```
    %h = matmul(%x, %up)                    // f32[B, 3072]
    %y = matmul(%a, %down)                  // %down : f32[3072, 768]
    ```
    with `prune{target=flops:0.5}` becomes
    ```
    %h.pruned = matmul(%x, %up)             // f32[B, 1536]
    %y = matmul(%a.pruned, %down)           // %down : f32[1536, 768]
    ```

    ## Exactness
    Lossy. The result equals the module with the dropped positions zeroed wherever they stand, and
    with normalizations counting only what is kept.

    ## References
    Fang et al., DepGraph, 2023; Wang et al., Structurally Prune Anything, 2024; Fang et al.,
    Isomorphic Pruning, 2024; Lee et al., LAMP, 2021; Liu et al., Network Slimming, 2017.

    Args:
        target: What to reach: `flops:0.5`, `macs:…`, `params:…`, `bytes:…`, or `latency:…` as
            measured where the result runs, as a fraction of the module before.
        criterion: What makes a unit important: `l1`, `l2`, `bn-scale`, `random`; measured on
            samples: `taylor` (sum of weight times gradient, absolute), `taylor-sum` (their sum,
            absolute), `activation` (what it carries into products: dead neurons carry nothing).
        reduction: How the scores of a group's slots become one.
        normalization: How scores of different groups become comparable.
        allocation: `uniform` keeps the same fraction everywhere, `global` the best scores of all
            groups, `isomorphic` ranks only among groups of the same structure.
        round_to: Sizes of innermost axes become multiples of it.
        keep: Weights none of whose axes shrink, as names or globs (`*.embed*`).
        min_keep: The least fraction of every group that stays; `none` keeps a tenth where the
            target can be met so, and less where it cannot.
    """

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Lossy("output")

    target: str
    criterion: Criterion = "l2"
    reduction: Reduction = "mean"
    normalization: Normalization = "mean"
    allocation: Allocation = "uniform"
    round_to: int = 1
    keep: tuple[str, ...] = ()
    min_keep: float | None = None

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Couples, scores, allocates, slices.

        Raises:
            UsageError: For a target that is none.
            TargetError: When no allowed sizes come near the target.
        """
        measure, fraction = parse_target(self.target)
        if self.round_to < 1:
            raise UsageError(f"pass `prune`, option `round-to`: {self.round_to} is below 1")
        if self.min_keep is not None and not 0 <= self.min_keep <= 1:
            raise UsageError(f"pass `prune`, option `min-keep`: {self.min_keep:g} is not in 0 to 1")
        drop_dead_code(module)
        coupling = Coupling(module)
        counted = "flops" if measure == LATENCY else measure
        cost = cost_model(coupling, counted, _sizes(module, ctx))
        recorded = ctx.replay.get(self.name, {}).get("plan")
        latency: float | None = ctx.replay.get(self.name, {}).get(LATENCY)
        choice: Choice
        scores: Scores = {}
        if recorded is not None:
            choice = choice_of(Plan.from_json(recorded), coupling)
        else:
            scores = score(
                coupling, self.criterion, self.reduction, self.normalization, ctx.seed, ctx
            )
            if measure == LATENCY:
                fitted = self._fit(coupling, cost, fraction, scores, ctx)
                choice, latency = fitted.choice, round(fitted.achieved, 4)
            else:
                choice = self._choose(coupling, cost, fraction, scores)
        plan = make_plan(coupling, choice)
        full = np.array([group.size for group in coupling.groups])
        dense, pruned = cost.total(full), cost.total(_sizes_after(coupling, choice))
        num_weights = slice_module(coupling, choice)
        drop_dead_code(module)
        stats: dict[str, int | float] = {
            "groups": len(coupling.groups),
            "pruned-groups": len(plan.groups),
            "pinned": len(coupling.pinned),
            "sliced-weights": num_weights,
            f"{counted}-before": round(dense),
            f"{counted}-after": round(pruned),
            "least-kept": round(
                min((len(g.kept[0]) / g.size for g in plan.groups), default=1.0), 6
            ),
            "achieved": round(pruned / dense, 6) if dense else 1.0,
        }
        if self.criterion == "activation" and self.normalization != "gaussian" and scores:
            silent = {group: int((found == 0).sum()) for group, found in scores.items()}
            stats["silent-units"] = sum(silent.values())
        decisions: dict[str, Any] = {"plan": plan.to_json()}
        achieved = pruned / dense if dense else 1.0
        if measure == LATENCY and latency is not None:
            decisions[LATENCY], achieved = latency, latency
            stats["latency"] = latency
        return PassResult(
            bool(plan.groups),
            stats,
            _skips(coupling),
            decisions,
            targets=(self._target(achieved),),
        )

    def _kept(self, coupling: Coupling) -> frozenset[Group]:
        """Returns the groups that stand in a weight to be kept.

        Raises:
            UsageError: When an entry of `keep` names no weight.
        """
        kept: set[Group] = set()
        for pattern in self.keep:
            names = set(fnmatch.filter(coupling.builder.weights, pattern))
            if not names:
                raise UsageError(
                    f"pass `prune`, option `keep`: `{pattern}` names no weight",
                    hint=suggest(pattern, coupling.builder.weights),
                )
            kept |= {g for g in coupling.groups if any(name in names for name, _ in g.weights)}
        return frozenset(kept)

    @property
    def _tolerance(self) -> float:
        if self.target.startswith(LATENCY):
            return LATENCY_TOLERANCE
        return _FREE_TOLERANCE if self.round_to == 1 else _ROUNDED_TOLERANCE

    def _target(self, achieved: float) -> Target:
        measure, fraction = parse_target(self.target)
        met = abs(achieved / fraction - 1) <= self._tolerance
        return Target(measure, fraction, round(achieved, 6), met)

    def _fit(
        self, coupling: Coupling, cost: CostModel, wanted: float, scores: Scores, ctx: Context
    ) -> Fitted:
        """Searches for a measured latency; the floor holds throughout."""
        if ctx.latency is None:
            raise UsageError(
                "pass `prune`, option `target`: `latency` is measured, and nothing here measures",
                hint="use it in `regraft convert`, or target=flops:…",
            )
        floor = _FLOORS[0] if self.min_keep is None else self.min_keep
        limits = limits_of(coupling, self.round_to, self._kept(coupling), floor)
        dense = cost.total(limits.high)

        def choice_at(fraction: float) -> Choice:
            sizes = allocate(coupling, cost, fraction * dense, limits, self.allocation, scores)
            return choose(coupling, sizes, scores)

        return fit_latency(coupling, wanted, choice_at, ctx.latency)

    def _choose(
        self, coupling: Coupling, cost: CostModel, fraction: float, scores: Scores
    ) -> Choice:
        if not coupling.groups:
            raise TargetError(
                f"pass `prune`: {self.target} cannot be reached, every axis is pinned",
                hint=_what_stops(coupling.pinned),
            )
        kept = self._kept(coupling)
        floors = _FLOORS if self.min_keep is None else (self.min_keep,)
        for floor in floors:
            limits = limits_of(coupling, self.round_to, kept, floor)
            dense = cost.total(limits.high)
            if dense <= 0:
                raise TargetError(f"pass `prune`: the module has no {cost.measure} to reduce")
            sizes = allocate(coupling, cost, fraction * dense, limits, self.allocation, scores)
            achieved = cost.total(sizes) / dense
            if self._target(achieved).met:
                break
        else:
            least = cost.total(limits.low) / dense
            raise TargetError(
                f"pass `prune`: {self.target} was asked for, {cost.measure}:{achieved:.4g} is "
                f"nearest (least {least:.4g}, tolerance {self._tolerance:.0%})",
                hint=self._stopped_by(coupling, least > fraction),
            )
        return choose(coupling, sizes, scores)

    def _stopped_by(self, coupling: Coupling, too_small: bool) -> str:
        """Names what keeps the target out of reach."""
        if not too_small:
            return _steps_hint(self)
        if self.min_keep:
            return f"`min-keep` holds {self.min_keep:g} of every group: lower it"
        return _what_stops(coupling.pinned)


def parse_target(text: str) -> tuple[str, float]:
    """Returns measure and fraction of `flops:0.5`.

    Raises:
        UsageError: When it is none.
    """
    measure, _, number = text.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if measure not in (*MEASURES, LATENCY) or not 0 < fraction < 1:
        raise UsageError(
            f"pass `prune`, option `target`: `{text}` is no target",
            hint=f"write one of {', '.join((*MEASURES, LATENCY))} and a fraction: `flops:0.5`",
        )
    return measure, fraction


def _sizes(module: Module, ctx: Context) -> dict[str, int]:
    """Returns the sizes that costs are counted at: given ones, else 1 for leading axes and 128."""
    leading = {str(value.shape[0]) for value in module.graph.inputs if value.shape}
    sizes = {
        symbol.name: 1 if symbol.name in leading else _DEFAULT_SIZE
        for symbol in input_symbols(module)
    }
    return {**sizes, **ctx.dims}


def _sizes_after(coupling: Coupling, choice: Choice) -> Array:
    return np.array(
        [choice[g].shape[-1] if g in choice else g.size for g in coupling.groups], np.int64
    )


def _skips(coupling: Coupling) -> tuple[Skip, ...]:
    """Returns one entry per pinned row of positions that weights hold."""
    return tuple(
        Skip(item.why.node, f"{item.weights[0][0]} axis {item.weights[0][1]}: {item.why}")
        for item in coupling.pinned
    )


def _steps_hint(item: Prune) -> str:
    """Says what makes sizes coarse."""
    if item.round_to > 1:
        return f"sizes are multiples of {item.round_to}: lower `round-to`, or ask for what is near"
    return "the model is too small for a nearer size: ask for what is near"


def _what_stops(pinned: tuple[PinnedSpace, ...]) -> str:
    """Names the reason that pins the most axes of weights, with the row that has most of them."""
    if not pinned:
        return "no weight has an axis that may shrink"
    counts: Counter[str] = Counter()
    for item in pinned:
        counts[item.why.reason] += len(item.weights)
    reason = counts.most_common(1)[0][0]
    alike = [item for item in pinned if item.why.reason == reason]
    example = max(alike, key=lambda item: len(item.weights))
    return f"{example.why}; `regraft inspect --couplings` lists all"
