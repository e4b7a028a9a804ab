"""The character model's blocks as parts, some of which compute: perplexity against what is active.

`python -m benchmarks.moe_partition SEED` makes the figures of a seed, and goes on where it was
stopped. Calibrated on training text, measured on files that were not trained on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, Measurement, Row, Settings, at_most, shown
from benchmarks.moe_small import (
    SEEDS,
    TOPIC,
    Windows,
    module_of,
    nats,
    terms_of,
    windows_of_training,
)
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.protocol import Context
from regraft.passes.recovery.task import Schedule, Task

_VERSION = 1
_TRAINING = 7000
"""Seed of windows, apart from those of other trainings."""
STEPS = 200

ANALYTIC: Mapping[str, PartitionFfn] = {
    **{
        f"{16 - left} of 16 by coactivation, centred": PartitionFfn(
            experts=16, top_k=16 - left, method="coactivation", compensate=True
        )
        for left in (2, 4, 6, 8)
    },
    "12 of 16 by coactivation": PartitionFfn(experts=16, top_k=12, method="coactivation"),
    "12 of 16 by rows, centred": PartitionFfn(experts=16, top_k=12, compensate=True),
    "12 of 16 at random, centred": PartitionFfn(
        experts=16, top_k=12, method="random", compensate=True
    ),
    "4 shared + 8 of 12 by rate, centred": PartitionFfn(
        experts=16, shared=4, top_k=8, method="rate", compensate=True
    ),
    "4 shared + 8 of 12 by rate, as CMoE": PartitionFfn(
        experts=16, shared=4, top_k=8, method="rate", router="representative"
    ),
}
THREE_QUARTERS = "12 of 16 by coactivation, centred"
HALF = "8 of 16 by coactivation, centred"
_PERPLEXITY, _TUNED = 2.0, 5.0


def _context(seed: int) -> Context:
    from regraft.backends.onnx.activations import OrtActivations

    return Context(samples=windows_of_training(), activations=OrtActivations(), seed=seed)


def analytic(name: str, seed: int, settings: Settings) -> Figures:
    """Returns nats before and after a partition without training."""

    def make() -> Figures:
        from benchmarks.small_models import get

        model = get("char-lm", seed)
        module = module_of(model)
        dense = nats(model, module)
        result = ANALYTIC[name].run(module, _context(seed))
        return {"dense": dense, "nats": nats(model, module), **result.stats}

    key = name.replace(" ", "-").replace(",", "")
    return kept(TOPIC, f"parts-{key}-{seed}", _VERSION, settings, make)


def tuned(name: str, seed: int, settings: Settings) -> Figures:
    """Returns nats after 200 steps: of a partition, or of the dense model (`dense`)."""

    def make() -> Figures:
        from benchmarks.small_models import get
        from regraft.backends.torch.training import TorchTrainer

        model = get("char-lm", seed)
        module = module_of(model)
        if name in ANALYTIC:
            ANALYTIC[name].run(module, _context(seed))
        schedule = Schedule(
            STEPS, learning_rate=5e-4, warmup_steps=10, betas=(0.9, 0.95), seed=seed,
            checkpoint_every=25,
        )  # fmt: skip
        folder = CACHE / TOPIC / f"parts-{name.split()[0]}-{seed}"
        TorchTrainer(folder=folder, progress=False).distill(
            module, [], Task(terms_of(module, 0.001), schedule), Windows(_TRAINING + seed)
        )
        return {"nats": nats(model, module)}

    return kept(TOPIC, f"tuned-{name.split()[0]}-{seed}", _VERSION, settings, make)


def _perplexity(settings: Settings) -> Iterator[Row]:
    for name in ANALYTIC:
        seeds = SEEDS if name in (THREE_QUARTERS, HALF) else SEEDS[:1]
        runs = [analytic(name, seed, settings) for seed in seeds]
        rises = [100 * (math.exp(run["nats"] - run["dense"]) - 1) for run in runs]
        mean, first = float(np.mean(rises)), runs[0]
        note = (
            f"{first['active-fraction']:.0%} active; seeds "
            f"{', '.join(f'{each:+.2f}' for each in rises)}; of blocks' results "
            f"{first['error-of-router']:.3f} is lost, by the best choice "
            f"{first['error-of-oracle']:.3f}"
        )
        what = f"{name}: perplexity above dense, no training"
        if name == THREE_QUARTERS:
            yield at_most(what, mean, _PERPLEXITY, "%", note)
        else:
            yield shown(what, mean, "%", note)


def _tuned(settings: Settings) -> Iterator[Row]:
    rises, against = [], []
    for seed in SEEDS:
        ours = tuned(HALF, seed, settings)["nats"]
        rises.append(100 * (math.exp(ours - analytic(HALF, seed, settings)["dense"]) - 1))
        against.append(100 * (math.exp(ours - tuned("dense", seed, settings)["nats"]) - 1))
    note = f"seeds {', '.join(f'{each:+.2f}' for each in rises)}"
    what = f"{HALF}: perplexity above dense after {STEPS} steps"
    yield at_most(what, float(np.mean(rises)), _TUNED, "%", note)
    yield shown(
        "the same above the dense model that was trained as long", float(np.mean(against)), "%",
        f"seeds {', '.join(f'{each:+.2f}' for each in against)}",
    )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("parts", "char-LM, 3 seeds: partitions without training", _perplexity),
    Measurement("parts-tuned", "char-LM, 3 seeds: half active, 200 steps", _tuned),
)

if __name__ == "__main__":
    own = Settings(python=sys.executable, peers_python=sys.executable, timeout_s=0, rounds=1)
    given = int(sys.argv[1])
    for each in (THREE_QUARTERS, HALF, *(ANALYTIC if given == 0 else ())):
        print(each, analytic(each, given, own), flush=True)
    for each in (HALF, "dense"):
        print(each, tuned(each, given, own), flush=True)
