"""The worked example of docs/pruning.md: a PyTorch model pruned, recovered and exported.

`python -m benchmarks.prune_quality --only example` prints what every step costs and brings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.small_models import digits, get
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes import quality
from regraft.passes.recovery.fixed import FixedBatches

FRACTION = 0.3
STEPS = 150
_SEED = 1000
_LOST = 1.0
"""Points of accuracy that may be missing at the end."""


def _images(first: int, count: int) -> list[Mapping[str, Any]]:
    batches = (digits.training_batch(_SEED, step, 64) for step in range(first, first + count))
    return [{"pixel_values": batch["pixel_values"]} for batch in batches]


def _accuracy(path: Path, module: Module) -> float:
    regraft.save(module, path, target="ort-cpu", force=True)
    runner = OrtRunner(path.read_bytes())
    return 100 * quality.accuracy(runner, get("digit-cnn").held_out()).accuracy


def _example(settings: Settings) -> Iterator[Row]:
    net = get("digit-cnn").net()
    first = torch.from_numpy(_images(0, 1)[0]["pixel_values"])
    module = regraft.capture(
        net, (), {"pixel_values": first}, dynamic_shapes={"pixel_values": {0: "batch"}}
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        regraft.apply(module, "canonicalize,fuse,canonicalize", check="off")
        dense, size = _accuracy(path, module), path.stat().st_size
        yield shown("digit-cnn: accuracy", dense, "%", f"{size} bytes")
        cut, repaired = module.clone(), module.clone()
        prune = f"prune{{target=flops:{FRACTION},repair=%s}}"
        given = _images(0, 6)
        regraft.apply(cut, prune % "none", samples=given, check="off")
        yield shown(f"cut to {FRACTION:.0%} of the FLOPs", _accuracy(path, cut), "%")
        regraft.apply(repaired, prune % "auto", samples=given, check="off")
        after_repair = _accuracy(path, repaired)
        yield shown("and repaired, without training", after_repair, "%")
        recover = f",recover{{steps={STEPS},rate=0.001}}"
        data = FixedBatches(_images(6, 60))
        regraft.apply(module, prune % "auto" + recover, samples=given, training=data, check="off")
        recovered = _accuracy(path, module)
        yield at_most("and recovered: points lost", dense - recovered, _LOST, "points",
                      f"{recovered:.4g} %, {STEPS} steps")  # fmt: skip
        yield at_least("bytes of the file: times smaller", size / path.stat().st_size, 1.5, "")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("example", "a PyTorch model pruned, recovered and exported", _example),
)
