"""The pass `ablate`: removes what a task does not miss, judged by its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.attention.replace_softmax import ReplaceSoftmax
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.folding import fold_trained
from regraft.passes.depth.stack import bypass, layers_of, removable, without
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.protocol import ActivationSource, Context, Contract, Lossy, PassResult, Samples
from regraft.passes.pruning.allocate import choose
from regraft.passes.pruning.criteria import Scores, score
from regraft.passes.pruning.limits import limits_of
from regraft.passes.pruning.measured import samples_of
from regraft.passes.pruning.plan import Choice, Plan, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module
from regraft.passes.quality.measure import LABELS

Array = np.ndarray[Any, Any]

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Ablate:
    """Removes parts, coarse ones first, and keeps every removal that a task does not miss.

    ## What it does
    First whole layers, the one that is missed least first. Then the groups of coupled units
    (`prune`), the costly ones first: of each it tries to drop the units of least score, most of
    them, then a half, a quarter, an eighth. Then, with `top_keys`, attention looks only at the keys
    of the largest scores, one layer after another. A change stays where the loss on the samples
    does not get worse than `tolerance` allows, and is the point of departure of the next.

    ## When it applies
    With samples, better with `labels` among their entries: the loss is then the cross-entropy of
    the first float output, of the next position where labels have one per position. Without labels
    it is the error of the outputs against those before, and `tolerance` has to be above 0.

    ## Example
    ```
    ablate{tolerance=0,top-keys=16}         // with --calibrate of labelled samples
    ```

    ## Exactness
    Lossy; on the samples, the loss is at most what it was, plus the tolerance.

    ## References
    Nagarajan et al., AxFormer, 2020.

    Args:
        tolerance: How much worse than the best loss so far a removal may be.
        parts: Fractions of a group that are dropped at once, tried in order.
        criterion: Says which units of a group go first: `energy` or `l2`.
        layers: Whether whole layers are tried.
        top_keys: Keys that attention may look at, tried in every layer; 0 leaves it alone.
    """

    name: ClassVar[str] = "ablate"
    contract: ClassVar[Contract] = Lossy("output")

    tolerance: float = 0.0
    parts: tuple[float, ...] = (0.9, 0.5, 0.25, 0.125)
    criterion: str = "energy"
    layers: bool = True
    top_keys: int = 0

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Tries removals, one at a time.

        Raises:
            UsageError: Without samples or a source of values; for fractions outside of 0 to 1.
        """
        if any(not 0 < part < 1 for part in self.parts) or self.criterion not in ("energy", "l2"):
            raise UsageError(
                "pass `ablate`: `parts` are fractions between 0 and 1, `criterion` is energy or l2"
            )
        if self.top_keys < 0:
            raise UsageError("pass `ablate`, option `top-keys`: a number of keys is 1 or more")
        fold_trained(module)
        drop_dead_code(module)
        recorded = ctx.replay.get(self.name)
        trial = None if recorded is not None else _Trial.begun(module, ctx, self.tolerance)
        dropped = self._drop_layers(module, trial, recorded)
        coupling = Coupling(module)
        if recorded is not None:
            choice: Choice = choice_of(Plan.from_json(recorded["plan"]), coupling)
        else:
            assert trial is not None, "nothing is recorded"
            choice = self._search(coupling, ctx, trial)
        plan = make_plan(coupling, choice)
        slice_module(coupling, choice)
        drop_dead_code(module)
        narrowed = self._narrow(module, ctx, trial, recorded)
        stats: dict[str, int | float] = {
            "dropped-layers": len(dropped), "pruned-groups": len(plan.groups),
            "narrowed-attention": len(narrowed),
        }  # fmt: skip
        trace = [] if trial is None else trial.trace
        if trace:
            stats |= {
                "removals": len(trace) - 1, "loss-before": round(trace[0], 6),
                "loss-after": round(trace[-1], 6),
            }  # fmt: skip
        decisions = {
            "layers": dropped, "plan": plan.to_json(), "attention": narrowed, "trace": trace,
        }  # fmt: skip
        return PassResult(bool(dropped or plan.groups or narrowed), stats, decisions=decisions)

    def _drop_layers(
        self, module: Module, trial: _Trial | None, recorded: Mapping[str, Any] | None
    ) -> list[int]:
        """Lets the stream go past layers that are not missed, and returns their numbers."""
        dropped: list[int] = []
        if recorded is not None:
            dropped = list(recorded.get("layers", ()))
        elif self.layers:
            assert trial is not None, "nothing is recorded"
            alone = {n: trial.loss.of(without(module, [n])) for n in removable(layers_of(module))}
            for number in sorted(alone, key=lambda n: (alone[n], n)):
                if trial.stays(without(module, [*dropped, number])):
                    dropped.append(number)
        bypass(layers_of(module), dropped)
        drop_dead_code(module)
        return sorted(dropped)

    def _search(self, coupling: Coupling, ctx: Context, trial: _Trial) -> Choice:
        """Returns the units that are kept."""
        criterion = "energy" if self.criterion == "energy" else "l2"
        scores = score(coupling, criterion, "mean", "none", ctx.seed, ctx)  # type: ignore[arg-type]  # one of two
        sizes = limits_of(coupling).high.copy()
        for idx, wanted in self._removals(coupling, sizes):
            tried = sizes.copy()
            tried[idx] = wanted
            if trial.stays(pruned_copy(coupling, tried, scores)):
                sizes[idx] = wanted
        return choose(coupling, sizes, scores)

    def _narrow(
        self,
        module: Module,
        ctx: Context,
        trial: _Trial | None,
        recorded: Mapping[str, Any] | None,
    ) -> list[int]:
        """Lets attention look at its top keys where that is not missed; returns the layers."""
        quiet = Context(seed=ctx.seed, target=ctx.target)
        if recorded is not None:
            numbers = tuple(recorded.get("attention", ()))
            if numbers:
                self._top_keys(numbers).run(module, quiet)
            return list(numbers)
        if not self.top_keys:
            return []
        assert trial is not None, "nothing is recorded"
        copy = module.clone()
        Fuse().run(copy, quiet)
        narrowed: list[int] = []
        for number in range(sum(node.op is attention for node in copy.graph)):
            copy = module.clone()
            result = self._top_keys((*narrowed, number)).run(copy, quiet)
            if result.stats["replaced"] > len(narrowed) and trial.stays(copy):
                narrowed.append(number)
        if narrowed:
            self._top_keys(tuple(narrowed)).run(module, quiet)
        return narrowed

    def _top_keys(self, numbers: tuple[int, ...]) -> ReplaceSoftmax:
        return ReplaceSoftmax("top-k", layers=numbers, k=self.top_keys)

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


@dataclass(slots=True)
class _Trial:
    """What has been tried so far.

    Attributes:
        loss: Judges modules.
        tolerance: How much worse than the best one may be.
        trace: The loss before, and after every change that stayed.
    """

    loss: TaskLoss
    tolerance: float
    trace: list[float]

    @staticmethod
    def begun(module: Module, ctx: Context, tolerance: float) -> _Trial:
        """Returns a trial of changes to a module.

        Raises:
            UsageError: Without a source of values.
        """
        if ctx.activations is None:
            raise UsageError(
                "pass `ablate` runs copies, and nothing here runs them",
                hint="use it in `regraft convert`",
            )
        loss = TaskLoss(module, ctx.activations, samples_of(ctx))
        return _Trial(loss, tolerance, [loss.of(module)])

    def stays(self, changed: Module) -> bool:
        """Returns whether a change is not missed, and takes note of it then."""
        found = self.loss.of(changed)
        if found > min(self.trace) + self.tolerance:
            return False
        self.trace.append(found)
        return True


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
