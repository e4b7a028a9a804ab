"""What training with other attention weights gives: outliers, their cost in 8 bits, long texts.

Small character models (`benchmarks.small_models.attention_lms`), trained from the same weights on
the same batches for every variant. Outliers are told by the kurtosis of what layers give, the
stream after every residual sum, and its mean over the layers, as in Quantizable Transformers
(Bondarenko et al., 2023); the gap is what W8A8 with one range per tensor loses on text that was not
trained on. Trained models are kept, and a training that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_most, shown
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.module import Module
from regraft.passes.analysis.residual import streams
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

Array = np.ndarray[Any, Any]

SEEDS = (0, 1, 2)
LONG = 2048
_QUANTIZE = Quantize(
    weights="int8", activations="static", method="round", tail=0, smooth=0.0, embeddings="none"
)
_CALIBRATION_SEED, _CALIBRATION = 77, 16
_WINDOWS, _LONG_WINDOWS = 256, 16
_REACH = (128, 512, 1024, 2048)
"""Characters before which losses of long texts are shown, by twos."""


def _log_losses(module: Module, batches: list[dict[str, Array]]) -> Array:
    """Returns nats per character, f64[windows, length - 1]."""
    run = OrtRunner(to_proto(module))
    found = []
    for batch in batches:
        logits = next(iter(run(batch).values())).astype(np.float64)[:, :-1]
        logits -= logits.max(-1, keepdims=True)
        wanted = np.take_along_axis(logits, batch["input_ids"][:, 1:, None], -1)[..., 0]
        found.append(np.log(np.exp(logits).sum(-1)) - wanted)
    return np.concatenate(found)


def _kurtosis(x: Array) -> float:
    apart = x.astype(np.float64) - x.mean()
    return float(np.mean(apart**4) / np.mean(apart**2) ** 2)


@dataclass(frozen=True, slots=True)
class Outliers:
    """What is measured of one trained model.

    Args:
        loss: Nats per character in f32.
        kurtosis: Of the stream after every layer, mean of the layers.
        largest: Largest of these numbers over their mean square root, mean of the layers.
        gap: What W8A8 loses, nats per character.
    """

    loss: float
    kurtosis: float
    largest: float
    gap: float


def outliers(variant: str, seed: int) -> Outliers:
    """Measures one trained model."""
    from benchmarks.small_models import attention_lms  # needs PyTorch

    module = attention_lms.module(attention_lms.model(variant, "packed", seed))
    regraft.apply(module, "canonicalize,fuse", check="off")
    batches = list(attention_lms.held_out_documents(_WINDOWS, 32))
    stream = [residual.output for chain in streams(module.graph) for residual in chain]
    kurtosis, largest = [], []
    for found in OrtActivations().activations(module, stream, batches[:2]):
        kurtosis += [_kurtosis(x) for x in found.values()]
        largest += [float(np.abs(x).max() / np.sqrt(np.mean(x**2))) for x in found.values()]
    before = _log_losses(module, batches).mean()
    samples = attention_lms.training_windows(_CALIBRATION_SEED, _CALIBRATION)
    _QUANTIZE.run(module, Context(samples=samples, activations=OrtActivations()))
    after = _log_losses(module, batches).mean()
    return Outliers(
        float(before), float(np.mean(kurtosis)), float(np.mean(largest)), float(after - before)
    )


def _outliers(settings: Settings) -> Iterator[Row]:
    found = {
        name: [outliers(name, seed) for seed in SEEDS] for name in ("softmax", "clipped", "gated")
    }
    for name, runs in found.items():
        for what, unit in (("loss", "nats"), ("kurtosis", ""), ("largest", "x"), ("gap", "nats")):
            values = [getattr(run, what) for run in runs]
            each = ", ".join(f"{value:.4g}" for value in values)
            yield shown(f"{name}: {_NAMES[what]}", float(np.mean(values)), unit, f"seeds: {each}")
    for name in ("clipped", "gated"):
        for what in ("kurtosis", "gap"):
            own, base = ([getattr(run, what) for run in found[n]] for n in (name, "softmax"))
            lower = sum(a < b for a, b in zip(own, base, strict=True))
            yield at_most(
                f"{_NAMES[what]}, {name} / softmax", float(np.mean(own) / np.mean(base)), 1.0, "x",
                f"mean of {len(SEEDS)} seeds, lower in {lower}",
            )  # fmt: skip


_NAMES = {
    "loss": "held-out loss per character",
    "kurtosis": "kurtosis of what layers give",
    "largest": "largest number that layers give, over the root of the mean square",
    "gap": "loss by W8A8, one range per tensor",
}


def _length(settings: Settings) -> Iterator[Row]:
    from benchmarks.small_models import attention_lms  # needs PyTorch

    for variant, name in (("softmax", "softmax"), ("softplus-sharp", "LSSAR")):
        module = attention_lms.module(attention_lms.model(variant, "long", SEEDS[0]))
        regraft.apply(module, "canonicalize,fuse", check="off")
        losses = _log_losses(module, list(attention_lms.held_out(_LONG_WINDOWS, 4, LONG)))
        start = 0
        for end in _REACH:
            nats = float(losses[:, start : end - 1].mean())
            yield shown(
                f"{name}, trained at {attention_lms.LENGTH}: perplexity at characters "
                f"{start + 1} to {end}", math.exp(nats), "", f"{nats:.3f} nats",
            )  # fmt: skip
            start = end - 1


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("outliers", "outliers and 8 bits after training with other weights", _outliers),
    Measurement("length", "small models read sixteen times the length they learned", _length),
)
