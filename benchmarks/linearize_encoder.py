"""A real sentence encoder with k of its 6 attention layers linear: likeness and latency.

Layers go in the order of what is lost without training when each goes alone. Feature maps are
fitted by transfer, then what changed is trained end to end; texts are held out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import regraft
from benchmarks.encoder import encoder, test_batch, training_batches
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes import quality
from regraft.report_html import lines_page

VERSION = 1
_TOPIC = "linearize"
COUNTS = (1, 2, 3, 6)
BARS = {1: 0.97, 6: 0.85}
TRANSFER_STEPS, RECOVER_STEPS = 300, 600
_LOOKED_AT = 16
"""Texts by which layers are ordered."""
_MINUTES = 20.0
_LENGTHS = (64, 128, 256, 512)
_ROUNDS = 15


def _linear(module: Module, layers: tuple[int, ...], options: str = "") -> Module:
    made = module.clone()
    numbers = ",".join(map(str, layers))
    regraft.apply(made, f"linearize-attention{{layers=[{numbers}]{options}}}", check="off")
    return made


def _likeness(module: Module, made: Module, batch: Any) -> dict[str, float | None]:
    reference, candidate = (OrtRunner(to_proto(each)) for each in (module, made))
    found = quality.embedding_similarity(reference, candidate, [batch], output="embedding")
    return {"cosine": found.mean, "worst": found.worst, "spearman": found.pair_spearman}


def order_of(settings: Settings) -> list[int]:
    """Returns the layers, the one that costs least when it goes alone first."""

    def make() -> Figures:
        module = encoder()
        batch = {name: array[:_LOOKED_AT] for name, array in test_batch().items()}
        alone = [_likeness(module, _linear(module, (k,)), batch)["cosine"] for k in range(6)]
        return {"cosine": alone}

    alone = kept(_TOPIC, "encoder-order", VERSION, settings, make)["cosine"]
    return sorted(range(6), key=lambda layer: -alone[layer])


def _trained(count: int, settings: Settings) -> Figures:
    layers = tuple(sorted(order_of(settings)[:count]))

    def make() -> Figures:
        module, batch, data = encoder(), test_batch(), training_batches()
        swapped = _linear(module, layers)
        numbers = ",".join(map(str, layers))
        found: Figures = {"layers": layers, "swap": _likeness(module, swapped, batch)}
        wall, cpu = time.perf_counter(), time.process_time()
        made, folder = module.clone(), CACHE / _TOPIC / f"encoder-{count}-{VERSION}.run"
        regraft.apply(
            made, f"linearize-attention{{layers=[{numbers}],steps={TRANSFER_STEPS}}}",
            check="off", training=data, work_dir=folder / "transfer",
        )  # fmt: skip
        found["transfer"] = _likeness(module, made, batch)
        student = module.clone()
        regraft.apply(
            student,
            f"linearize-attention{{layers=[{numbers}],steps={TRANSFER_STEPS}}},"
            f"recover{{steps={RECOVER_STEPS},refit=false,precision=fp32}}",
            check="off", training=data, work_dir=folder / "recover",
        )  # fmt: skip
        found["recover"] = _likeness(module, student, batch)
        return {**found, "seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    key = f"encoder-{count}-{TRANSFER_STEPS}-{RECOVER_STEPS}"
    return kept(_TOPIC, key, VERSION, settings, make)


def _alike(count: int, settings: Settings) -> Iterator[Row]:
    found = _trained(count, settings)
    last, parts = found["recover"], [found[each] for each in ("swap", "transfer", "recover")]
    note = "swap, transfer, recover: " + ", ".join(f"{each['cosine']:.3f}" for each in parts)
    name = f"encoder, {count} of 6 layers linear: cosine on held-out texts"
    bar = BARS.get(count)
    row = shown(name, last["cosine"], "", note)
    yield row if bar is None else at_least(name, last["cosine"], bar, "", note)
    yield shown(
        f"encoder, {count} of 6: Spearman of pairs", last["spearman"], "",
        "before " + ", ".join(f"{each['spearman']:.3f}" for each in parts[:2]),
    )  # fmt: skip
    yield at_most(
        f"encoder, {count} of 6: CPU time of training", found["cpu"] / 60, _MINUTES, "min",
        f"layers {', '.join(map(str, found['layers']))}",
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
            for stage in ("swap", "transfer", "recover")
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
    made = _linear(module, tuple(range(6)))
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
