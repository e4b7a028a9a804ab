"""The pass `ablate`: removes what a task does not miss, judged by its loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.folding import fold_trained
from regraft.passes.protocol import ActivationSource, Context, Contract, Lossy, PassResult, Samples
from regraft.passes.pruning.allocate import choose
from regraft.passes.pruning.criteria import Scores, score
from regraft.passes.pruning.limits import limits_of
from regraft.passes.pruning.measured import samples_of
from regraft.passes.pruning.plan import Choice, Plan, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module

Array = np.ndarray[Any, Any]

LABELS = "labels"
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Ablate:
    """Removes parts, coarse ones first, and keeps every removal that a task does not miss.

    ## What it does
    Takes the groups of coupled units (`prune`) one after another, the costly ones first. Of each it
    tries to drop the units of least score: most of them, then a half, a quarter, an eighth. A
    removal stays where the loss on the samples does not get worse than `tolerance` allows, and is
    the point of departure of the next.

    ## When it applies
    With samples, better with `labels` among their entries: the loss is then the cross-entropy of
    the first float output, of the next position where labels have one per position. Without labels
    it is the error of the outputs against those before, and `tolerance` has to be above 0.

    ## Example
    ```
    ablate{tolerance=0}                     // with --calibrate of labelled samples
    ```

    ## Exactness
    Lossy; on the samples, the loss is at most what it was, plus the tolerance.

    ## References
    Nagarajan et al., AxFormer, 2020 (ablation driven by accuracy; its attention to the top keys is
    not part of this).

    Args:
        tolerance: How much worse than the best loss so far a removal may be.
        parts: Fractions of a group that are dropped at once, tried in order.
        criterion: Says which units of a group go first: `energy` or `l2`.
    """

    name: ClassVar[str] = "ablate"
    contract: ClassVar[Contract] = Lossy("output")

    tolerance: float = 0.0
    parts: tuple[float, ...] = (0.9, 0.5, 0.25, 0.125)
    criterion: str = "energy"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Tries removals, one at a time.

        Raises:
            UsageError: Without samples or a source of values; for fractions outside of 0 to 1.
        """
        if any(not 0 < part < 1 for part in self.parts) or self.criterion not in ("energy", "l2"):
            raise UsageError(
                "pass `ablate`: `parts` are fractions between 0 and 1, `criterion` is energy or l2"
            )
        fold_trained(module)
        drop_dead_code(module)
        coupling = Coupling(module)
        recorded = ctx.replay.get(self.name, {}).get("plan")
        trace: list[float] = []
        if recorded is not None:
            choice: Choice = choice_of(Plan.from_json(recorded), coupling)
        else:
            choice, trace = self._search(coupling, ctx)
        plan = make_plan(coupling, choice)
        slice_module(coupling, choice)
        drop_dead_code(module)
        stats: dict[str, int | float] = {"pruned-groups": len(plan.groups)}
        if trace:
            stats |= {
                "removals": len(trace) - 1, "loss-before": round(trace[0], 6),
                "loss-after": round(trace[-1], 6),
            }  # fmt: skip
        decisions = {"plan": plan.to_json(), "trace": trace}
        return PassResult(bool(plan.groups), stats, decisions=decisions)

    def _search(self, coupling: Coupling, ctx: Context) -> tuple[Choice, list[float]]:
        """Returns what is kept, and the loss before and after every removal that stayed."""
        if ctx.activations is None:
            raise UsageError(
                "pass `ablate` runs copies, and nothing here runs them",
                hint="use it in `regraft convert`",
            )
        samples = samples_of(ctx)
        loss = TaskLoss(coupling.module, ctx.activations, samples)
        criterion = "energy" if self.criterion == "energy" else "l2"
        scores = score(coupling, criterion, "mean", "none", ctx.seed, ctx)  # type: ignore[arg-type]  # one of two
        sizes = limits_of(coupling).high.copy()
        best = loss.of(coupling.module)
        trace = [best]
        for idx, wanted in self._removals(coupling, sizes):
            trial = sizes.copy()
            trial[idx] = wanted
            found = loss.of(pruned_copy(coupling, trial, scores))
            if found <= best + self.tolerance:
                sizes[idx] = wanted
                best = min(best, found)
                trace.append(found)
        return choose(coupling, sizes, scores), trace

    def _removals(self, coupling: Coupling, sizes: Array) -> Iterator[tuple[int, int]]:
        """Yields group and size to try, as sizes are when it is asked: coarse removals first."""
        elements = [
            sum(coupling.module.weights[name].nbytes for name, _ in group.weights)
            for group in coupling.groups
        ]
        order = sorted(range(len(elements)), key=lambda idx: -elements[idx])
        for part in self.parts:
            for idx in order:
                wanted = max(int(sizes[idx] * (1 - part)), 1)
                if wanted < sizes[idx]:
                    yield idx, wanted


def pruned_copy(coupling: Coupling, sizes: Array, scores: Scores) -> Module:
    """Returns a copy whose groups have given sizes, units of the least scores gone."""
    copy = coupling.module.clone()
    trial = Coupling(copy)
    chosen = choose(coupling, sizes, scores)
    slice_module(trial, choice_of(make_plan(coupling, chosen), trial))
    drop_dead_code(copy)
    return copy


class TaskLoss:
    """Mean cross-entropy where samples have labels, else the error of the outputs.

    Args:
        module: The module before.
        source: Runs modules.
        samples: Inputs, and `labels` i64[B] or i64[B, S].
    """

    def __init__(self, module: Module, source: ActivationSource, samples: Samples) -> None:
        self.source = source
        self.samples = samples
        self.is_labelled = all(LABELS in sample for sample in samples)
        self.inputs = [{k: v for k, v in sample.items() if k != LABELS} for sample in samples]
        self.error = (
            None if self.is_labelled else OutputError(module, source, samples, "pass `ablate`")
        )

    def of(self, module: Module) -> float:
        """Returns the loss of a module with the same outputs."""
        if self.error is not None:
            return self.error.error(module)
        value = next(v for v in module.graph.outputs if v.dtype is not None and v.dtype.is_float)
        total = count = 0.0
        found = self.source.activations(module, [value], self.inputs)
        for sample, outputs in zip(self.samples, found, strict=True):
            logits, labels = outputs[value].astype(np.float64), np.asarray(sample[LABELS])
            if logits.ndim == labels.ndim + 1 and labels.ndim > 1:
                logits, labels = logits[:, :-1], labels[:, 1:]
            logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
            logits, labels = logits[labels != _IGNORED], labels[labels != _IGNORED]
            shifted = logits - logits.max(-1, keepdims=True)
            logarithm = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            total -= float(logarithm[np.arange(len(labels)), labels].sum())
            count += len(labels)
        return total / max(count, 1.0)
