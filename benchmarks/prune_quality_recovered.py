"""The sentence encoder with a fifth of its FLOPs gone, and what minutes of recovery bring back.

Pruned and repaired by default options on 48 texts, then trained on the outputs of the original with
texts of news and of an encyclopedia. Compared on other news, of which people said how alike each
two are. Needs what `make recovery-models` installs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import numpy as np
import torch

import regraft
from benchmarks import encoder as source
from benchmarks.counted_batches import CountedBatches
from benchmarks.fixtures import vision_ops
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import Measurement, Row, Settings, at_most, shown
from benchmarks.prune_trained_torch import CALIBRATED
from regraft.backends.torch.executor import TorchExecutor
from regraft.backends.torch.training import TorchTrainer
from regraft.ir.module import Module
from regraft.passes.protocol import Context, Samples
from regraft.passes.quality.embedding import EmbeddingMeter, EmbeddingQuality
from regraft.passes.recovery.recover import Recover

VERSION = 1
FRACTION = 0.8
STEPS = 1200
RECOVER = Recover(steps=STEPS, rate=3e-4, warmup=0.03, refit=False, checkpoint_every=50)
"""Without a refit: the repair of `prune` has solved for every layer."""
LOST = 0.01
MINUTES, THREADS = 15.0, 2
_TOPIC = "prune_quality"


def _figures(dense: Module, other: Module) -> EmbeddingQuality:
    batch, people = source.documents()
    meter, executor = EmbeddingMeter(), TorchExecutor()
    meter.update(*(executor.run(each, [batch])[0]["embedding"] for each in (dense, other)))
    return meter.result(people)


def _samples(module: Module) -> Samples:
    names = [str(value.name) for value in module.graph.inputs]
    batch = next(source.training_data(CALIBRATED).batches())
    return [{name: np.asarray(batch[name]) for name in names}]


def _quality(found: EmbeddingQuality) -> Figures:
    return {"human": found.human_candidate, "pairs": found.pair_spearman, "cosine": found.mean}


def _pruned(dense: Module, settings: Settings) -> tuple[Module, Figures]:
    """Returns the pruned module, from a file where there is one, and how good it is."""
    file = settings.work / _TOPIC / f"encoder-{FRACTION}-{VERSION}.rg"

    def make() -> Figures:
        module, start = dense.clone(), time.process_time()
        passes = f"prune{{target=flops:{FRACTION}}}"
        (record,) = regraft.apply(module, passes, samples=_samples(module), check="off")
        seconds = time.process_time() - start
        file.parent.mkdir(parents=True, exist_ok=True)
        regraft.save(module, file, force=True)
        quality = _quality(_figures(dense, module))
        return {**quality, "achieved": record.stats["achieved"], "cpu_seconds": seconds}

    found = kept(_TOPIC, file.stem, VERSION, settings, make)
    return regraft.load(file), found


def _recovered(settings: Settings) -> Figures:
    """Trains from the last checkpoint on; CPU time is that of all steps at the pace of these."""
    vision_ops.declare()
    dense = source.encoder()
    module, pruned = _pruned(dense, settings)
    folder = settings.work / _TOPIC / f"recovered-{STEPS}-{VERSION}"
    if settings.again:
        shutil.rmtree(folder, ignore_errors=True)
    data, trainer = CountedBatches(source.training_batches()), TorchTrainer(folder=folder)
    wall, cpu = time.perf_counter(), time.process_time()
    ctx = Context(trainer=trainer, training=data, teacher=dense)
    result = RECOVER.run(module, ctx)
    share = STEPS / max(STEPS - data.first, 1)
    wall, cpu = (time.perf_counter() - wall) * share, (time.process_time() - cpu) * share
    return {
        **_quality(_figures(dense, module)), "dense": _figures(dense, dense).human_reference,
        "pruned": pruned, "seconds": wall, "cpu_seconds": cpu, "stats": dict(result.stats),
        "threads": torch.get_num_threads(), "resumed": data.first,
    }  # fmt: skip


def _rows(settings: Settings) -> Iterator[Row]:
    run = kept(_TOPIC, f"encoder-{FRACTION}-recovered-{STEPS}", VERSION, settings,
               lambda: _recovered(settings))  # fmt: skip
    pruned, dense = run["pruned"], run["dense"]
    what = f"sentence encoder, {FRACTION:.0%} of the FLOPs"
    yield shown("sentence encoder: Spearman with people", dense, "", "1,225 pairs of 50 texts")
    for name, found in (("repaired", pruned), ("recovered", run)):
        yield shown(f"{what}, {name}: cosine", found["cosine"], "")
        yield shown(f"{what}, {name}: Spearman of pairs", found["pairs"], "")
    yield shown(f"{what}, repaired: Spearman with people", pruned["human"], "",
                f"achieved {pruned['achieved']:.4g}")  # fmt: skip
    yield at_most(f"{what}, recovered: Spearman with people below f32", dense - run["human"], LOST,
                  "", f"{run['human']:.4g}, {STEPS} steps")  # fmt: skip
    # other programs on the cores do not count: 15 minutes of two quiet ones are 30 of CPU time
    note = f"{run['seconds'] / 60:.1f} min in {run['threads']} threads beside other programs"
    if run["resumed"]:
        note += f", at the pace of the steps from {run['resumed']} on"
    yield at_most("CPU time of recovery", run["cpu_seconds"] / 60, MINUTES * THREADS, "min", note)
    yield shown("CPU time of pruning and repair", pruned["cpu_seconds"] / 60, "min")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("recovered", "the sentence encoder at 80 %, recovered by training", _rows),
)
