"""The character model upcycled and trained on: copies and redrawn copies against the dense model.

All runs of a seed begin at the same weights and see the same tokens; one expert computes a token,
so that experts and dense model cost the same. Runs are kept, and go on where they were stopped:
`python -m benchmarks.moe_small SEED` makes those of a seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import regraft
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, Measurement, Row, Settings, at_most, shown
from regraft.inspection import inspect_module
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context, Samples
from regraft.passes.recovery.objective import Balance, CrossEntropy, Term
from regraft.passes.recovery.task import Schedule, Task

if TYPE_CHECKING:
    from benchmarks.small_models import SmallModel

SEEDS = (0, 1, 2)
EXPERTS = 8
STEPS, EVERY = 400, 50
TOPIC = "moe"
_VERSION = 2
_BALANCE = 0.001
_RATE = 1e-3
_BATCH, _LENGTH = 16, 128
_CALIBRATION = 9000
_FIRST = 5000
"""Seed of the batches of seed 0: other places of the text than its training had."""

RUNS: Mapping[str, UpcycleFfn | None] = {
    "dense": None,
    "copy": UpcycleFfn(experts=EXPERTS, top_k=1, router="centroid"),
    "drop": UpcycleFfn(
        experts=EXPERTS, top_k=1, method="drop", ratio=0.125, router="centroid"
    ),
    "drop-half": UpcycleFfn(experts=EXPERTS, top_k=1, method="drop", router="centroid"),
}  # fmt: skip
"""The chosen expert has weight 1: copies begin as the model was. Experts have like tokens from the
first step, and none of the balance is left to a loss. Half of the channels drawn anew, as in the
paper, takes more tokens than these to make up for: its curve is shown for the first seed."""

HALF = "drop-half"


@dataclass(frozen=True, slots=True)
class Windows:
    """Batches of text with the next character as label.

    Args:
        seed: Of the places.
        batch_size: Windows of a batch.
    """

    seed: int
    batch_size: int = _BATCH

    def batches(self, first: int = 0) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Yields batches from number `first` on."""
        from benchmarks.small_models import corpus

        while True:
            ids = corpus.training_batch(self.seed, first, self.batch_size, _LENGTH)["input_ids"]
            yield labelled(ids)
            first += 1


def windows_of_training(count: int = 8) -> Samples:
    """Returns batches of training text, without labels: what passes are calibrated on."""
    batches = Windows(_CALIBRATION).batches()
    found = [next(batches) for _ in range(count)]
    return [{name: array for name, array in each.items() if name != "labels"} for each in found]


def labelled(ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Returns a batch with the next character as label, the last position of a window aside."""
    labels = np.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}


def module_of(model: SmallModel) -> Module:
    """Returns the module, recognized and fused."""
    module = model.module()
    regraft.apply(module, "canonicalize,fuse,canonicalize", check="off")
    return module


def nats(model: SmallModel, module: Module) -> float:
    """Returns nats per character on files that were not trained on."""
    from regraft.backends.onnx import to_proto
    from regraft.backends.onnx.runtime import OrtRunner
    from regraft.passes import quality

    runner = OrtRunner(to_proto(module, profile="ort-cpu"))
    return math.log(quality.perplexity(runner, model.held_out()).perplexity)


def terms_of(module: Module, balance: float = _BALANCE) -> tuple[Term, ...]:
    """Returns cross-entropy, and balance of every layer of experts."""
    routed = [node for node in module.graph if node.op is moe.moe]
    return (
        Term(CrossEntropy(), student="logits", label="labels"),
        *(
            Term(Balance(node.attrs["top_k"]), student=node.inputs[1], weight=balance)
            for node in routed
            if node.inputs[1] is not None
        ),
    )


def trained(run: str, seed: int, settings: Settings) -> Figures:
    """Returns nats before and after training, and the objective on the way."""

    def make() -> Figures:
        from benchmarks.small_models import get
        from regraft.backends.onnx.activations import OrtActivations
        from regraft.backends.torch.training import TorchTrainer

        model = get("char-lm", seed)
        module = module_of(model)
        dense_flops = _flops(module)
        upcycle = RUNS[run]
        if upcycle is not None:
            samples = windows_of_training()
            upcycle.run(module, Context(seed, samples=samples, activations=OrtActivations()))
        found: Figures = {"before": nats(model, module), "flops": _flops(module) / dense_flops}
        schedule = Schedule(
            STEPS, learning_rate=_RATE, warmup_steps=20, betas=(0.9, 0.95), seed=seed,
            evaluate_every=EVERY, checkpoint_every=25,
        )  # fmt: skip
        trainer = TorchTrainer(folder=CACHE / TOPIC / f"{run}-{seed}-{_VERSION}", progress=False)
        held_out = [labelled(batch["input_ids"]) for batch in list(model.held_out())[:2]]
        report = trainer.distill(
            module, [], Task(terms_of(module), schedule), Windows(_FIRST + seed), held_out
        )
        return found | {"after": nats(model, module), "curve": report.held_out}

    return kept(TOPIC, f"upcycled-{run}-{seed}", _VERSION, settings, make)


def _flops(module: Module) -> float:
    return float(inspect_module(module, {"batch": 1, "seq": _LENGTH})["flops"])


def _upcycled(settings: Settings) -> Iterator[Row]:
    runs = {
        run: [trained(run, seed, settings) for seed in (SEEDS[:1] if run == HALF else SEEDS)]
        for run in RUNS
    }
    after = {run: [each["after"] for each in found] for run, found in runs.items()}
    for run, found in runs.items():
        before = float(np.mean([each["before"] for each in found]))
        note = (
            f"{before:.4f} before; seeds {', '.join(f'{each:.4f}' for each in after[run])}; "
            f"{found[0]['flops']:.3f} of the dense model's FLOPs"
        )
        yield shown(f"{run}: after {STEPS} steps", float(np.mean(after[run])), "nats", note)
    for run in ("copy", "drop"):
        gaps = [ours - dense for ours, dense in zip(after[run], after["dense"], strict=True)]
        note = "mean over the seeds"
        yield at_most(f"{run}: above continued dense", float(np.mean(gaps)), 0, "nats", note)
    for run in ("drop", HALF):
        count = len(runs[run])
        gap = float(np.mean(after[run]) - np.mean(after["copy"][:count]))
        curve = [
            (step, float(np.mean([each["curve"][idx][1] for each in runs[run]])
                         - np.mean([each["curve"][idx][1] for each in runs["copy"][:count]])))
            for idx, (step, _) in enumerate(runs["copy"][0]["curve"])
        ]  # fmt: skip
        yield shown(f"{run}: above copy", gap, "nats", f"{crossover(curve)}; {_written(curve)}")


def crossover(curve: Sequence[tuple[int, float]]) -> str:
    """Returns where a difference crosses zero for good, or would if its last slope went on."""
    below = [step for step, gap in curve if gap <= 0]
    if curve[-1][1] <= 0:
        first = min(step for step in below if all(gap <= 0 for s, gap in curve if s >= step))
        return f"below from step {first} on"
    (s, before), (t, last) = curve[-3], curve[-1]
    if last >= before:
        return "no crossover in sight"
    return f"no crossover yet, at the last slope at step {t + last * (t - s) / (before - last):.0f}"


def _written(curve: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{step}: {gap:+.4f}" for step, gap in curve)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("upcycled", "char-LM, 3 seeds: upcycled against continued dense", _upcycled),
)

if __name__ == "__main__":
    for name in RUNS if sys.argv[1] == "0" else [each for each in RUNS if each != HALF]:
        own = Settings(python=sys.executable, peers_python=sys.executable, timeout_s=0, rounds=1)
        print(name, trained(name, int(sys.argv[1]), own), flush=True)
