"""Trained models pruned by a fifth of their FLOPs: what it costs in their own outputs.

Scores are measured on one seed of samples, outputs compared on others.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, held, shown
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import TargetError, UnsupportedError
from regraft.ir.module import Module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning import Prune
from regraft.passes.pruning.criteria import Criterion
from regraft.passes.pruning.repair import Repair

TARGETS = ("flops:0.8", "params:0.8")
"""The second is for models most of whose FLOPs depend on shapes that only run time knows."""

CRITERIA: tuple[Criterion | None, ...] = ("l2", "activation", None)
"""None is what `prune` takes by itself where samples are given."""

SEEDS = (1, 2, 3)
"""Of the samples that outputs are compared on; those of 0 calibrate."""


def real(settings: Settings) -> Iterator[Row]:
    """Yields, per model and criterion, the cosine of its main output before and after."""
    for model in models.CORE:
        samples = models.samples(model)
        others = [sample for seed in SEEDS for sample in models.samples(model, seed)]
        module = regraft.load(models.find(model))
        for item in (Canonicalize(), Fuse(), Canonicalize()):
            item.run(module, Context())
        dense = OrtRunner(to_proto(module, profile="ort-cpu"))
        for criterion in CRITERIA:
            try:
                target, achieved, copy = _pruned(module, criterion, samples)
                pruned = OrtRunner(to_proto(copy, profile="ort-cpu"))
                cosine, change = closeness(dense, pruned, others)
            except (TargetError, UnsupportedError) as error:
                what = f"{model.name} by {criterion or 'default'}: prunes"
                yield held(what, holds=False, note=error.message[:160])
                continue
            what = f"{model.name}: {target} by {criterion or 'default'}"
            note = f"largest change, mean {change:.2g} of the largest, achieved {achieved}"
            yield shown(f"{what}: cosine, dense 1", cosine, "", note)


def _pruned(
    module: Module, criterion: Criterion | None, samples: Samples
) -> tuple[str, float, Module]:
    """Returns the target that could be counted, what was achieved, and the pruned copy."""
    ctx = Context(samples=samples, activations=OrtActivations())
    for target in TARGETS:
        copy = module.clone()
        try:
            repair: Repair = "auto" if criterion is None else "none"  # criteria by themselves
            result = Prune(target, criterion=criterion, repair=repair).run(copy, ctx)
        except TargetError:
            if target == TARGETS[-1]:
                raise
            continue
        return target, float(result.stats["achieved"]), copy
    raise AssertionError("there are targets")


def closeness(
    dense: OrtRunner, pruned: OrtRunner, samples: list[dict[str, Any]]
) -> tuple[float, float]:
    """Returns means over samples: the cosine of the first float output, its largest change."""
    cosines, changes = [], []
    for sample in samples:
        before, after = _first(dense(sample)), _first(pruned(sample))
        norms = float(np.linalg.norm(before) * np.linalg.norm(after))
        cosines.append(float(before @ after) / norms if norms else 0.0)
        scale = max(float(np.abs(before).max()), 1e-30)
        changes.append(float(np.abs(before - after).max()) / scale)
    return float(np.mean(cosines)), float(np.mean(changes))


def _first(outputs: Mapping[str, Any]) -> Any:
    array = next(array for array in outputs.values() if array.dtype.kind == "f")
    return array.reshape(-1).astype(np.float64)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("prune-real", "trained models pruned by a fifth: outputs before and after", real),
)
