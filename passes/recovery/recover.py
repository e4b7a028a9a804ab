"""The pass `recover`: fits a module to what it was before the lossy passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType
from regraft.passes.analysis.position_mask import mask_of
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip, Trainer
from regraft.passes.recovery.data import Batch, Data
from regraft.passes.recovery.fading import drop_faded
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import Kl, Loss, Mse, NormalizedMse, Term
from regraft.passes.recovery.places import (
    Shared,
    blocks,
    compare,
    hidden_pairs,
    matrices,
    refits,
    trained_weights,
)
from regraft.passes.recovery.task import (
    Adapter,
    Dsee,
    Lora,
    Precision,
    Reconstruction,
    Schedule,
    Spp,
    Task,
)

_LOSSES: dict[str, Loss] = {"normalized": NormalizedMse(), "mse": Mse(), "kl": Kl()}


@dataclass(frozen=True, slots=True)
class Recover:
    """Fits the weights to what the module computed before the first lossy pass of the pipeline.

    ## What it does
    Three steps, each of which may be left out. `refit`: in layers that were rewritten, the linear
    layer at the end of every branch is solved for by least squares, so that the stream comes
    nearest to the teacher's. `blocks`: every changed layer is trained by itself, fed what the
    teacher has. `steps`: everything that changed is trained end to end on the outputs and the
    results of layers. What lies before the first change is computed once per batch. Where
    `factorize` left a part of the whole matrices beside their factors, that part fades in the first
    half of the steps, and is gone in the end.

    ## When it applies
    After lossy passes, with data: `--train`, or the samples that passes measure on. Layers are
    compared with those that the teacher has under the same names; outputs of the same name and type
    are compared always. Weights that unchanged parts read as well stay as they are.

    ## Example
    ```
    drop-layers{layers=[2]},recover{steps=1500}
    ```

    ## Exactness
    Lossy: weights are what training makes them. The same data, options and seed give the same
    weights on the same machine.

    ## References
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Zhang et al., LAPTOP-Diff,
    2024 (normalized feature loss); Hu et al., LoRA, 2021; Lu et al., SPP, 2024.

    Args:
        steps: Updates end to end; 0 for none.
        rate: The highest learning rate.
        warmup: Part of the steps in which it is reached.
        batches: Batches per update.
        precision: fp32, bf16, or auto: bf16 where the processor multiplies such matrices.
        loss: Of outputs: normalized (squares over the teacher's), mse, or kl for logits.
        outputs: Weight of the outputs' loss.
        hidden: Weight of the loss at the result of each changed layer.
        refit: Whether linear layers are solved for first.
        ridge: How strongly that keeps weights where they are, at least: batches that are held out
            may ask for more.
        refit_batches: Batches that it looks at.
        blocks: Updates of every changed layer by itself; 0 for none.
        before: So many layers before the first change are trained as well.
        adapter: none, lora, spp, which keeps the zeros of sparse matrices, or dsee, which adds low
            rank and a few numbers to them.
        rank: Of lora and dsee.
        mask: Input that is nonzero where positions count, where the module has it.
        checkpoint_every: Updates between checkpoints, where a folder for them is given.
    """

    name: ClassVar[str] = "recover"
    contract: ClassVar[Contract] = Lossy("output")
    needs_teacher: ClassVar[bool] = True

    steps: int = 1000
    rate: float = 3e-4
    warmup: float = 0.05
    batches: int = 1
    precision: Precision = "auto"
    loss: Literal["normalized", "mse", "kl"] = "normalized"
    outputs: float = 5.0
    hidden: float = 1.0
    refit: bool = True
    ridge: float = 0.01
    refit_batches: int = 24
    blocks: int = 0
    before: int = 0
    adapter: Literal["none", "lora", "spp", "dsee"] = "none"
    rank: int = 8
    mask: str = "attention_mask"
    checkpoint_every: int = 100

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Refits, trains blocks, and trains end to end.

        Raises:
            UsageError: Without data, without a trainer, or where nothing was lost.
        """
        trainer, teacher, data = _given(ctx)
        shared = compare(module, teacher)
        if not shared.changed:
            raise UsageError(
                "pass `recover`: the module computes what it computed before",
                hint="put it after the lossy passes of the same pipeline",
            )
        trained = trained_weights(shared, self.before)
        if self.adapter != "none":
            trained = matrices(shared, trained)
        terms = self._terms(shared)
        skipped: list[Skip] = []
        stats: dict[str, int | float] = {"trained": len(trained)}
        if self.refit and self.adapter == "none":
            places = refits(shared, self.mask)
            found = list(islice(data.batches(), self.refit_batches))
            trainer.refit(module, teacher, places, found, self.ridge)
            stats["refitted"] = len(places)
            if not places:
                skipped.append(Skip("refit", "no rewritten layer ends in a plain linear layer"))
        if self.blocks:
            self._train_blocks(module, shared, trainer, data, ctx.seed, stats)
        if self.steps:
            task = Task(terms, self._schedule(self.steps, ctx.seed), trained, self._adapter())
            report = trainer.distill(module, [teacher], task, data)
            tail = report.losses[-max(1, len(report.losses) // 20) :]
            stats |= {"steps": report.steps, "loss-first": report.losses[0],
                      "loss-last": sum(tail) / len(tail)}  # fmt: skip
            gone = drop_faded(module)
            if gone:
                stats["faded"] = gone
        return PassResult(True, stats, tuple(skipped), decisions={"trained": list(trained)})

    def _train_blocks(
        self, module: Module, shared: Shared, trainer: Trainer, data: Data, seed: int,
        stats: dict[str, int | float],
    ) -> None:  # fmt: skip
        parts = blocks(shared, self.mask)
        if parts:
            samples = list(islice(data.batches(), max(self.refit_batches, self.blocks)))
            plan = Reconstruction(
                parts, self._schedule(self.blocks, seed), NormalizedMse(), self._adapter()
            )
            trainer.reconstruct(module, shared.teacher, plan, samples)
        stats["blocks"] = len(parts)

    def _schedule(self, steps: int, seed: int) -> Schedule:
        return Schedule(
            steps, self.rate, int(self.warmup * steps), batches_per_step=self.batches,
            precision=self.precision, seed=seed, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip

    def _adapter(self) -> Adapter | None:
        match self.adapter:
            case "none":
                return None
            case "lora":
                return Lora(self.rank, 2.0 * self.rank)
            case "spp":
                return Spp()
            case "dsee":
                return Dsee(self.rank)

    def _terms(self, shared: Shared) -> tuple[Term, ...]:
        own, theirs = shared.module.graph, shared.teacher.graph
        old = dict(zip(theirs.output_names, theirs.outputs, strict=True))
        terms = [
            Term(_LOSSES[self.loss], name, name, mask=mask_of(shared.module, value, self.mask),
                 weight=self.outputs)
            for name, value in zip(own.output_names, own.outputs, strict=True)
            if self.outputs and name in old and _are_alike(value, old[name])
        ]  # fmt: skip
        outputs = set(own.outputs)
        terms += [
            Term(NormalizedMse(), value, (other,), mask=mask_of(shared.module, value, self.mask),
                 weight=self.hidden)
            for value, other in hidden_pairs(shared)
            if self.hidden and value not in outputs
        ]  # fmt: skip
        if not terms:
            raise UsageError(
                "pass `recover`: no float output or layer is what it was under its name",
                hint="give `outputs` or `hidden` a weight, or run it before outputs are renamed",
            )
        return tuple(terms)


def _are_alike(own: Value, old: Value) -> bool:
    dtype = own.type.dtype if isinstance(own.type, TensorType) else None
    return own.type == old.type and dtype is not None and dtype.is_float


def _given(ctx: Context) -> tuple[Trainer, Module, Data]:
    """Returns what training needs.

    Raises:
        UsageError: Naming what is missing.
    """
    if ctx.trainer is None:
        raise UsageError(
            "pass `recover` needs PyTorch", hint="install it: `pip install 'regraft[torch]'`"
        )
    if ctx.teacher is None:
        raise UsageError(
            "pass `recover` has no module to learn from",
            hint="put it behind a lossy pass of the same pipeline, such as `drop-layers`",
        )
    samples: Sequence[Batch] = ctx.samples
    if ctx.training is None and not samples:
        raise UsageError(
            "pass `recover` needs data", hint="give `--train DATA` (or `training=` in Python)"
        )
    return ctx.trainer, ctx.teacher, ctx.training or FixedBatches(samples, ctx.seed)
