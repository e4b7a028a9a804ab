"""The pass `prune`: removes whole channels, neurons, heads and widths, to a stated budget."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.collector import collector_paused
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.check.samples import input_symbols
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.folding import fold_trained
from regraft.passes.pipeline import suggest
from regraft.passes.plots import Plot
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip, Target
from regraft.passes.pruning.alike import Classes, alike, each_alone
from regraft.passes.pruning.allocate import Allocation
from regraft.passes.pruning.cost import CostModel, cost_model
from regraft.passes.pruning.criteria import (
    SHARES,
    Criterion,
    Normalization,
    Reduction,
    Scores,
    score,
)
from regraft.passes.pruning.gates import Gates, Learning, learn_gates
from regraft.passes.pruning.goals import LATENCY, Goal, parse_goal
from regraft.passes.pruning.limits import RoundTo, limits_of, multiples_of
from regraft.passes.pruning.plan import Choice, Plan, choice_of, make_plan
from regraft.passes.pruning.plan_files import read_plan
from regraft.passes.pruning.redundancy import Redundant, find_redundant, kept_of, merge_twins
from regraft.passes.pruning.repair import Outcome, Repair, method_of, repair
from regraft.passes.pruning.search import Search
from regraft.passes.pruning.slicing import slice_module
from regraft.passes.reconstruction.counterpart import Counterpart

Array = np.ndarray[Any, Any]

_DEFAULT_SIZE = 128

REDUNDANT = "redundant"

_FLOORS = (0.5, 0.3, 0.1, 0.05, 0.025, 0.0)
"""Fractions of every group that stay at least, tried in order: a layer that is cut to a unit or
two costs more quality than its cost is worth, whatever its scores say."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Removes channels, neurons, heads and widths everywhere at once, to a stated budget.

    ## What it does
    Finds every row of positions that may be dropped and all axes that must lose them together
    (the coupling), scores the units, chooses how many each group keeps so that the target is met,
    and slices weights, sizes and attributes. Sliced weights are derived: where each element came
    from stays known. Heads, groups and scales are written from the plan, so that no reshape
    regroups heads and attention keeps its scale.

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
    with normalizations counting only what is kept. With `target=redundant` only units go that carry
    nothing, or the same as another: outputs stay as they are, to rounding.

    ## References
    Fang et al., DepGraph, 2023; Wang et al., Structurally Prune Anything, 2024; Fang et al.,
    Isomorphic Pruning, 2024; Hu et al., FARMS, 2025; Xu et al., Joint Layer-Adaptive Pruning, 2023;
    Lee et al., LAMP, 2021; Liu et al., Network Slimming, 2017; Chen et al., Net2Net, 2016; LeCun et
    al., OBD, 1990; Lee et al., SNIP, 2019; Wang et al., GraSP, 2020; Sun et al., Wanda, 2024; An et
    al., FLAP, 2024.

    Args:
        target: What to reach: `flops:0.5`, `macs:…`, `params:…`, `bytes:…`, or `latency:…` as
            measured where the result runs, as a fraction of the module before; or `redundant`:
            dead units, by proof or (criterion `activation`, `energy`) on samples, and duplicates.
        plan: The output folder (or its `recipe.yaml`, or a plan as JSON) of an earlier `prune`:
            keeps the same positions, of this or another checkpoint of the architecture. Takes the
            place of a target.
        criterion: What makes a unit important: `l1`, `l2`, `bn-scale` (gains of batch
            normalizations; `l2` for groups without one), `random`; measured on
            samples: `taylor` (sum of weight times gradient, absolute), `taylor-sum` (their sum,
            absolute), `fisher` (squared weights by the Fisher diagonal), `snip`, `grasp`,
            `activation` (what it carries into products: dead neurons carry nothing), `wanda` and
            `fluctuation` (that, and its variance, by the weights that read it), `energy` (its share
            of what products make of it), `obs` (the share that is lost when the others make up for
            it), `sequential` (how early it is chosen by sequential attention), `gates` (how far a
            gate stays open that is learned with the budget). `none` is `energy` where samples can
            be run, else `l2`.
        reduction: How the scores of a group's slots become one.
        normalization: How scores of different groups become comparable; `auto` leaves shares of
            energy as they are and divides others by their mean.
        allocation: `uniform` keeps the same fraction everywhere, `global` the best scores of all
            groups (of `energy` and `obs` per cost), `isomorphic` ranks only among groups of the
            same structure, `spectral` keeps more where spectra of weights have heavier tails,
            `measured` runs copies in which each group is cut alone and solves for
            the least error of the outputs, `learned` learns a threshold of scores per group. `auto`
            is `global` for `energy`, `obs` and `gates`, else `uniform`.
        round_to: Sizes of innermost axes become multiples of it. `auto` takes what the target's
            kernels run best at; `[channels:16,widths:64,heads:2,head-size:8]` states it by axis.
        layout: `alike` keeps whole heads only, and the same number of units in every layer, as the
            configs of libraries state them; `auto` does so for `--target hf`, else `free`.
        keep: Weights none of whose axes shrink, as names or globs (`*.embed*`).
        min_keep: The least fraction of every group that stays; `none` keeps half where the
            target can be met so, and less where it cannot.
        curves: A file that keeps what `allocation=measured` measured: an interrupted run goes on
            from there, and other targets measure nothing again.
        repair: What makes up for it without training: `reconstruct` solves every layer that reads
            pruned axes for its weight and bias by least squares, one after the other, and measures
            batch normalizations again; `bias` moves biases only (both make biases where there are
            none). They look at the samples, else at generated inputs. `auto` is `reconstruct` where
            samples are given, else `none`. What makes outputs worse is undone.
        gates: A file that keeps what `criterion=gates` learned. Gates that are there already, of a
            related task, are where learning starts.
        steps: Updates of gates and of learned thresholds.
    """

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Lossy("output")

    target: str = ""
    criterion: Criterion | None = None
    reduction: Reduction = "mean"
    normalization: Normalization | Literal["auto"] = "auto"
    allocation: Allocation | Literal["auto"] = "auto"
    round_to: RoundTo = 1
    layout: Literal["auto", "free", "alike"] = "auto"
    keep: tuple[str, ...] = ()
    min_keep: float | None = None
    plan: str | None = None
    curves: str | None = None
    repair: Repair = "auto"
    gates: str | None = None
    steps: int = 40

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Couples, scores, allocates, slices.

        Raises:
            UsageError: For a target that is none.
            InputError: For a plan that does not fit.
            TargetError: When no allowed sizes come near the target.
        """
        if self.min_keep is not None and not 0 <= self.min_keep <= 1:
            raise UsageError(f"pass `prune`, option `min-keep`: {self.min_keep:g} is not in 0 to 1")
        if bool(self.target) == (self.plan is not None):
            raise UsageError(
                "pass `prune` takes one of the options `target` and `plan`",
                hint="write `prune{target=flops:0.5}`, or `prune{plan=out}`",
            )
        multiples_of(self.round_to, ctx.target)
        goal = None
        if self.target not in ("", REDUNDANT):
            goal = parse_goal(self.target, rounded=self.round_to != 1)
        fold_trained(module)  # a parametrization has no rows to prune, the weight that it gives has
        drop_dead_code(module)
        with collector_paused():  # it would walk over all slots again and again
            coupling = Coupling(module)
            cost = cost_model(coupling, goal.counted if goal else "params", _sizes(module, ctx))
        picked = self._pick(coupling, cost, goal, ctx)
        merge_twins(coupling, picked.merged)
        plan = make_plan(coupling, picked.choice)
        is_lossy = self.target != REDUNDANT and bool(plan.groups)
        method = method_of(self.repair, ctx) if is_lossy else None
        before = None if method is None else Counterpart.before(coupling, picked.choice)
        full = np.array([group.size for group in coupling.groups])
        dense, pruned = cost.total(full), cost.total(_sizes_after(coupling, picked.choice))
        with collector_paused():
            num_weights = slice_module(coupling, picked.choice)
            drop_dead_code(module)
        repaired = Outcome(changed=False)
        if method is not None and before is not None:
            repaired = repair(module, before, ctx, method)
        achieved = pruned / dense if dense else 1.0
        stats: dict[str, int | float] = {
            "groups": len(coupling.groups),
            "pruned-groups": len(plan.groups),
            "pinned": len(coupling.pinned),
            "sliced-weights": num_weights,
            f"{cost.measure}-before": round(dense),
            f"{cost.measure}-after": round(pruned),
            "least-kept": round(
                min((len(g.kept[0]) / g.size for g in plan.groups), default=1.0), 6
            ),
            "achieved": round(achieved, 6),
            **picked.stats,
            **repaired.stats,
        }
        decisions: dict[str, Any] = {"plan": plan.to_json()}
        if picked.merged:
            decisions["merged"] = {
                group.name: {str(k): v for k, v in item.twins.items()}
                for group, item in picked.merged.items()
            }
        targets: tuple[Target, ...] = ()
        if goal is not None:
            if goal.measure == LATENCY and picked.latency is not None:
                decisions[LATENCY] = stats["latency"] = achieved = picked.latency
            met = goal.met_by(achieved)
            targets = (Target(goal.measure, goal.fraction, round(achieved, 6), met),)
        return PassResult(
            bool(plan.groups), stats, _skips(coupling), decisions, targets=targets,
            plots=picked.plots,
        )  # fmt: skip

    def _pick(
        self, coupling: Coupling, cost: CostModel, goal: Goal | None, ctx: Context
    ) -> _Picked:
        """Decides what is kept: as recorded, as a plan states, by redundancy, or by the goal."""
        recorded = ctx.replay.get(self.name, {})
        document = recorded.get("plan")
        if document is None and self.plan is not None:
            document = read_plan(Path(self.plan))
        if document is not None:
            choice: Choice = choice_of(Plan.from_json(document), coupling)
            groups = {group.name: group for group in coupling.groups}
            merged = {
                groups[name]: Redundant(twins={int(k): v for k, v in twins.items()})
                for name, twins in recorded.get("merged", {}).items()
            }
            return _Picked(choice, {}, merged, recorded.get(LATENCY))
        if goal is None:
            return self._redundant(coupling, ctx)
        criterion = self._criterion(ctx)
        normalization = self.normalization
        if normalization == "auto":
            normalization = "none" if criterion in SHARES else "mean"
        if criterion == "gates":
            scores = self._gates(coupling, cost, goal, ctx)
        else:
            scores = score(coupling, criterion, self.reduction, normalization, ctx.seed, ctx)
        stats: dict[str, int | float] = {}
        if criterion in ("activation", "energy") and normalization != "gaussian":
            silent = {group: int((found == 0).sum()) for group, found in scores.items()}
            stats["silent-units"] = sum(silent.values())
        allocation = self.allocation
        if allocation == "auto":
            allocation = "global" if criterion in (*SHARES, "gates") else "uniform"
        search = Search(
            coupling, cost, goal, scores, allocation, ctx,
            classes_at=lambda floor: self._classes(coupling, ctx, floor),
            floors=_FLOORS if self.min_keep is None else (self.min_keep,),
            priced=criterion in SHARES, curves=self.curves, is_rounded=self.round_to != 1,
            steps=self.steps,
        )  # fmt: skip
        if goal.measure == LATENCY:
            fitted = search.fit()
            reached = round(fitted.achieved, 4)
            return _Picked(fitted.choice, {**stats, **search.stats}, {}, reached, search.plots())
        found = search.choose()
        return _Picked(found, {**stats, **search.stats}, {}, plots=search.plots())

    def _gates(self, coupling: Coupling, cost: CostModel, goal: Goal, ctx: Context) -> Scores:
        """Learns gates, from those of another task where `gates` names what is there."""
        path = None if self.gates is None else Path(self.gates)
        first = Gates.read(path, coupling) if path is not None and path.exists() else None
        full = np.array([group.size for group in coupling.groups])
        learning = Learning(cost, goal.fraction * cost.total(full), self.steps)
        found = learn_gates(coupling, ctx, learning, first)
        if path is not None:
            found.write(path)
        return {g: theta.reshape(g.num_blocks, g.size) for g, theta in found.values.items()}

    def _criterion(self, ctx: Context) -> Criterion:
        if self.criterion is not None:
            return self.criterion
        return "energy" if ctx.activations is not None and ctx.samples else "l2"

    def _redundant(self, coupling: Coupling, ctx: Context) -> _Picked:
        silent: dict[Group, Array] | None = None
        if self.criterion in ("activation", "energy"):
            scores = score(coupling, self.criterion, "max", "none", ctx.seed, ctx)
            silent = {group: rows[0] == 0 for group, rows in scores.items()}
        found = find_redundant(coupling, silent)
        kept = self._kept(coupling)
        found = {group: item for group, item in found.items() if group not in kept}
        choice = {group: kept_of(group, item) for group, item in found.items()}
        stats: dict[str, int | float] = {
            "dead-units": sum(len(item.dead) for item in found.values()),
            "duplicate-units": sum(len(item.twins) for item in found.values()),
        }
        return _Picked(choice, stats, {g: item for g, item in found.items() if item.twins})

    def _classes(self, coupling: Coupling, ctx: Context, floor: float) -> Classes:
        multiples = multiples_of(self.round_to, ctx.target)
        limits = limits_of(coupling, multiples, self._kept(coupling), floor)
        is_alike = self.layout == "alike" or (self.layout == "auto" and ctx.target == "hf")
        return alike(coupling, limits) if is_alike else each_alone(limits)

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


@dataclass(frozen=True, slots=True)
class _Picked:
    """What is kept, with the figures found on the way."""

    choice: Choice
    stats: Mapping[str, int | float]
    merged: Mapping[Group, Redundant]
    latency: float | None = None
    plots: tuple[Plot, ...] = ()


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
