"""A real sentence encoder with k of its 6 attention layers linear: likeness and latency.

Feature maps of all layers are fitted to the softmax (transfer); the budget solver chooses the k
whose linear forms cost least, by the KL of their weights and how much of it reaches the embedding;
what changed is then trained end to end on texts of news and of an encyclopedia. Compared on other
news. Every stage is kept, and a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import regraft
from benchmarks.counted_batches import CountedBatches
from benchmarks.encoder import encoder, test_batch, training_batches
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.torch.training import TorchTrainer
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes import quality
from regraft.passes.linearization.linearize_attention import LinearizeAttention
from regraft.passes.protocol import Context
from regraft.passes.recovery.recover import Recover
from regraft.report_html import lines_page

VERSION = 2
_TOPIC = "linearize"
LAYERS = 6
COUNTS = (1, 2, 3, 6)
BARS = {1: 0.97, 6: 0.85}
TRANSFER_STEPS, RECOVER_STEPS = 200, 300
_TOKENS = 512
"""Length that the solver's budget is for."""
_SLACK = 1e-9
_MAPS = "attention."
"""Names of learned weights begin with it."""
_MINUTES = 20.0
_LENGTHS = (64, 128, 256, 512)
_ROUNDS = 15
_STAGES = ("swap", "transfer", "recover")


def _linear(module: Module, layers: tuple[int, ...]) -> Module:
    made = module.clone()
    LinearizeAttention(layers=layers).run(made, Context())
    return made


def _likeness(module: Module, made: Module) -> dict[str, float | None]:
    reference, candidate = (OrtRunner(to_proto(each)) for each in (module, made))
    found = quality.embedding_similarity(reference, candidate, [test_batch()], output="embedding")
    return {"cosine": found.mean, "worst": found.worst, "spearman": found.pair_spearman}


def _budget(count: int, module: Module) -> float:
    """Returns the part of the caches' bytes that a state in `count` of the layers leaves."""
    probe = module.clone()
    record = LinearizeAttention(cache=1.0, tokens=_TOKENS).run(
        probe, Context(samples=[next(training_batches().batches())], activations=OrtActivations())
    )
    costs = record.decisions["layers"]
    each = costs[0]
    return float(1 - count / LAYERS * (1 - each["state_bytes"] / each["cache_bytes"]) + _SLACK)


def _fitted(count: int, settings: Settings) -> tuple[Module, Figures]:
    """Returns the module whose `count` layers the solver chose, behind the transfer.

    The transfer of all layers is made once: its checkpoint is at its end for every other count.
    """
    folder = settings.work / _TOPIC / f"encoder-transfer-{TRANSFER_STEPS}-{VERSION}"
    module, pace = encoder(), folder.with_suffix(".pace.json")
    data = CountedBatches(training_batches(), pace)
    path = folder.parent / f"encoder-maps-{count}-{TRANSFER_STEPS}-{VERSION}.npz"

    def fit() -> Figures:
        if settings.again:
            shutil.rmtree(folder, ignore_errors=True)
            pace.unlink(missing_ok=True)
        LinearizeAttention(steps=TRANSFER_STEPS).run(
            module.clone(),
            Context(trainer=TorchTrainer(progress=False, folder=folder), training=data),
        )
        return {"cpu": data.seconds_of(TRANSFER_STEPS)}

    fitted = kept(_TOPIC, f"encoder-transfer-{TRANSFER_STEPS}", VERSION, settings, fit)

    def choose() -> Figures:
        start, made = time.process_time(), module.clone()
        budget = _budget(count, module)
        ctx = Context(
            trainer=TorchTrainer(progress=False, folder=folder), training=data,
            activations=OrtActivations(),
        )  # fmt: skip
        item = LinearizeAttention(steps=TRANSFER_STEPS, cache=budget, tokens=_TOKENS)
        chosen = dict(item.run(made, ctx).decisions)
        maps = {n: made.weights[n].numpy() for n in made.weights if n.startswith(_MAPS)}
        np.savez(path, allow_pickle=False, **maps)
        return {
            "layers": chosen["linear"], "costs": chosen["layers"],
            "cpu": fitted["cpu"] + time.process_time() - start,
            "swap": _likeness(module, _linear(module, tuple(chosen["linear"]))),
            "transfer": _likeness(module, made),
        }  # fmt: skip

    again = replace(settings, again=settings.again or not path.is_file())
    found = kept(_TOPIC, path.stem, VERSION, again, choose)
    # a clone: weights that are shared with the teacher are known to be the same
    student = _linear(module, tuple(found["layers"]))
    with np.load(path) as maps:
        for name in maps:
            student.weights.set(name, ArrayWeight(maps[name]))
    return student, found


def _trained(count: int, settings: Settings) -> Figures:
    """Returns the figures of all stages; CPU time is that of steps in all turns of the run."""

    def make() -> Figures:
        student, fitted = _fitted(count, settings)
        folder = settings.work / _TOPIC / f"encoder-recover-{count}-{RECOVER_STEPS}-{VERSION}"
        module, pace = encoder(), folder.with_suffix(".pace.json")
        data = CountedBatches(training_batches(), pace)
        if settings.again:
            shutil.rmtree(folder, ignore_errors=True)
            pace.unlink(missing_ok=True)
        item = Recover(RECOVER_STEPS, refit=False, precision="fp32", checkpoint_every=50)
        trainer = TorchTrainer(progress=False, folder=folder)
        item.run(student, Context(trainer=trainer, training=data, teacher=module))
        spent = fitted["cpu"] + data.seconds_of(RECOVER_STEPS)
        last = _likeness(module, student)
        shutil.rmtree(folder, ignore_errors=True)
        return {**fitted, "recover": last, "cpu": spent}

    key = f"encoder-{count}-{TRANSFER_STEPS}-{RECOVER_STEPS}"
    return kept(_TOPIC, key, VERSION, settings, make)


def _alike(count: int, settings: Settings) -> Iterator[Row]:
    found = _trained(count, settings)
    last, parts = found["recover"], [found[each] for each in _STAGES]
    note = "swap, transfer, recover: " + ", ".join(f"{each['cosine']:.3f}" for each in parts)
    name = f"encoder, {count} of 6 layers linear: cosine on held-out texts"
    bar = BARS.get(count)
    row = shown(name, last["cosine"], "", note)
    yield row if bar is None else at_least(name, last["cosine"], bar, "", note)
    yield shown(
        f"encoder, {count} of 6: Spearman of pairs", last["spearman"], "",
        "before " + ", ".join(f"{each['spearman']:.3f}" for each in parts[:2]),
    )  # fmt: skip
    yield held(
        f"encoder, {count} of 6: the solver chose so many", len(found["layers"]) == count,
        f"layers {', '.join(map(str, found['layers']))}; errors alone "
        + ", ".join(f"{each['error']:.2g}" for each in found["costs"]),
    )  # fmt: skip
    yield at_most(
        f"encoder, {count} of 6: CPU time of training", found["cpu"] / 60, _MINUTES, "min",
        f"{TRANSFER_STEPS} steps of transfer, {RECOVER_STEPS} end to end",
    )  # fmt: skip


def _plotted(settings: Settings) -> Iterator[Row]:
    found = {count: _trained(count, settings) for count in COUNTS}
    plots = []
    for name in ("cosine", "spearman"):
        lines = [
            {
                "name": stage, "chosen": None,
                "points": [(float(k), found[k][stage][name]) for k in COUNTS],
            }
            for stage in _STAGES
        ]  # fmt: skip
        plots.append({
            "title": name, "x": "layers that are linear, of 6", "y": name, "lines": lines,
            "note": "Texts that nothing was trained on.",
        })  # fmt: skip
    path = CACHE / _TOPIC / "encoder.html"
    path.write_text(lines_page("Encoder, k of 6 layers linear", "held-out texts", plots))
    yield shown("encoder: points plotted", len(COUNTS) * 6, "", str(path.name))


def _latency(settings: Settings) -> Iterator[Row]:
    module = encoder()
    made = _linear(module, tuple(range(LAYERS)))
    runs = []
    for each in (module, made):
        regraft.apply(each, "canonicalize,legalize{target=ort-cpu}", check="off")
        runs.append(OrtRunner(to_proto(each, profile="ort-cpu")))
    for length in _LENGTHS:
        ids = np.random.default_rng(0).integers(1000, 20_000, (1, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        calls: list[Callable[[], Any]] = [partial(run, feeds) for run in runs]
        times = interleaved(calls, _ROUNDS, clock=time.thread_time)
        found = ratio(*times)
        middle = [1e3 * sorted(each)[len(each) // 2] for each in times]
        yield shown(
            f"encoder, softmax / all linear, {length} tokens", found.median, "x",
            f"{found}; {middle[0]:.1f} and {middle[1]:.1f} ms",
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    *(
        Measurement(f"encoder-{count}", f"{count} of 6 layers linear", partial(_alike, count))
        for count in COUNTS
    ),
    Measurement("encoder-plot", "likeness by the number of layers", _plotted),
    Measurement("encoder-latency", "latency by length in ONNX Runtime", _latency),
)
