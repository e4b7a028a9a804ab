"""Small trained models at half of their FLOPs, without training: solver and repair against norms.

Three kinds, five seeds of each. Units are chosen and layers repaired on batches of training data,
figures are those of data that was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import regraft
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import Measurement, Row, Settings, at_least, shown
from benchmarks.small_models import SmallModel, corpus, digits, get
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes import quality
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning import Prune

SEEDS = range(5)
HALF = 0.5
CURVE = (0.8, 0.65, 0.5, 0.35)
"""Fractions of the FLOPs at which the first seed is measured."""

VERSION = 1
"""Of the kept figures: counted up when pruning or repair changes what they are."""
POINTS, EXCESS = 10.0, 30.0
_TOPIC = "prune_quality"
_FAR = 1000
"""Seed of batches: training of seed 0 to 4 takes others."""

METHODS: dict[str, Prune] = {
    "l2": Prune(criterion="l2", allocation="uniform", repair="none"),
    "l2+obs": Prune(criterion="l2", allocation="uniform", repair="reconstruct"),
    "dp": Prune(allocation="measured", repair="none"),
    "dp+obs": Prune(allocation="measured", repair="reconstruct"),
}


def calibration(name: str) -> Samples:
    """Returns batches of training data, without labels."""
    if name == "char-lm":
        found = (corpus.training_batch(_FAR, step, 8, 128) for step in range(4))
        return [_masked(batch) for batch in found]
    batches = (digits.training_batch(_FAR, step, 64) for step in range(6))
    return [{"pixel_values": batch["pixel_values"]} for batch in batches]


def figure(model: SmallModel, module: Module) -> float:
    """Returns percent of right digits, or nats per character, on data that was held out."""
    runner = OrtRunner(to_proto(module, profile="ort-cpu"))
    if model.kind.name != "char-lm":
        return 100 * quality.accuracy(runner, model.held_out()).accuracy
    return math.log(quality.perplexity(runner, map(_masked, model.held_out())).perplexity)


def _masked(batch: Any) -> dict[str, Any]:
    return {**batch, "attention_mask": np.ones_like(batch["input_ids"])}


def module_of(model: SmallModel) -> Module:
    """Returns the module, recognized and fused."""
    module = model.module()
    regraft.apply(module, "canonicalize,fuse,canonicalize", check="off")
    return module


def measured(name: str, seed: int, fraction: float, settings: Settings) -> Figures:
    """Returns the figure of the dense model and those by method, with what the pass reported."""

    def make() -> Figures:
        model = get(name, seed)
        module = module_of(model)
        ctx = Context(samples=calibration(name), activations=OrtActivations())
        found: Figures = {"dense": figure(model, module)}
        for method, options in METHODS.items():
            copy = module.clone()
            curves = str(settings.work / _TOPIC / f"{name}-{seed}.curves")
            prune = replace(options, target=f"flops:{fraction}")
            if prune.allocation == "measured":
                prune = replace(prune, curves=curves)
            result = prune.run(copy, ctx)
            found[method] = {"figure": figure(model, copy), **result.stats}
        return found

    return kept(_TOPIC, f"{name}-{seed}-{fraction}", VERSION, settings, make)


def _half(name: str, settings: Settings) -> Iterator[Row]:
    runs = [measured(name, seed, HALF, settings) for seed in SEEDS]
    is_loss = name == "char-lm"
    unit = "nats" if is_loss else "%"
    dense = [run["dense"] for run in runs]
    yield shown(f"{name}: dense", float(np.mean(dense)), unit, f"{len(runs)} seeds")
    means = {}
    for method in METHODS:
        found = [run[method]["figure"] for run in runs]
        means[method] = float(np.mean(found))
        note = f"seeds {', '.join(f'{each:.4g}' for each in found)}"
        yield shown(f"{name}: half of the FLOPs by {method}", means[method], unit, note)
    r2 = [run["dp"]["additivity-r2"] for run in runs]
    yield shown(f"{name}: R² of sums of losses", float(np.mean(r2)), "", f"seeds {r2}")
    if is_loss:
        excess = {method: value - float(np.mean(dense)) for method, value in means.items()}
        lower = 100 * (1 - excess["dp+obs"] / excess["l2"])
        yield at_least(f"{name}: excess loss of DP + OBS below uniform L2", lower, EXCESS, "%")
        return
    gain = means["dp+obs"] - means["l2"]
    yield at_least(f"{name}: accuracy of DP + OBS above uniform L2", gain, POINTS, "points")


def _curves(name: str, settings: Settings) -> Iterator[Row]:
    for fraction in CURVE:
        run = measured(name, 0, fraction, settings)
        for method in METHODS:
            note = f"dense {run['dense']:.4g}, achieved {run[method]['achieved']:.4g}"
            what = f"{name}: {fraction:.0%} of the FLOPs by {method}"
            yield shown(what, run[method]["figure"], "nats" if name == "char-lm" else "%", note)


NAMES = ("digit-cnn", "digit-vit", "char-lm")
MEASUREMENTS: tuple[Measurement, ...] = (
    *(
        Measurement(f"half-{name}", f"{name} at half of its FLOPs, 5 seeds", partial(_half, name))
        for name in NAMES
    ),
    *(
        Measurement(f"curve-{name}", f"{name} from 80 to 35 % of its FLOPs", partial(_curves, name))
        for name in NAMES
    ),
)
