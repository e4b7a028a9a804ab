"""What training with other attention weights gives: outliers, their cost in 8 bits, long texts.

Small language models, trained from the same weights on the same batches for every variant: of
Bigram-Backcopy, where heads mostly have nothing to do and park (`small_models.backcopy_lms`), and
of packed documents of text, where at this size they do not (`small_models.attention_lms`). Outliers
are told by the kurtosis of what layers give, the stream after every residual sum, and its mean over
the layers, as in Quantizable Transformers (Bondarenko et al., 2023); the gap is what W8A8 with one
range per tensor loses on texts that were not trained on. Bars are those of Bigram-Backcopy; of the
documents figures are shown. Trained models are kept, and a training that was stopped goes on.
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
from regraft.ir.ops import norm
from regraft.passes.analysis.residual import streams
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from regraft.passes.quantization.sites import linears

Array = np.ndarray[Any, Any]

SEEDS = (0, 1, 2)
LONG = 2048
_QUANTIZE = Quantize(
    weights="int8", activations="static", method="round", tail=0, smooth=0.0, embeddings="none"
)
_NORMS = frozenset({norm.rms_norm, norm.layer_norm})
_CALIBRATION_SEED, _CALIBRATION = 77, 16
_WINDOWS, _LONG_WINDOWS = 256, 16
_REACH = (128, 512, 1024, 2048)
"""Characters before which losses of long texts are shown, by twos."""


def _logits(module: Module, batches: list[dict[str, Array]]) -> Iterator[tuple[Array, Array]]:
    """Yields the ids and the logarithms of probabilities, f64[B, S, V], of every batch."""
    run = OrtRunner(to_proto(module))
    for batch in batches:
        logits = next(iter(run(batch).values())).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        yield batch["input_ids"], logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _log_losses(module: Module, batches: list[dict[str, Array]]) -> Array:
    """Returns nats per character, f64[windows, length - 1]."""
    found = [
        -np.take_along_axis(logs[:, :-1], ids[:, 1:, None], -1)[..., 0]
        for ids, logs in _logits(module, batches)
    ]
    return np.concatenate(found)


def _divergences(module: Module, batches: list[dict[str, Array]]) -> Array:
    """Returns nats per character beyond the entropy of the language, f64[texts, length]."""
    from benchmarks.small_models import backcopy  # needs PyTorch

    found = []
    for ids, logs in _logits(module, batches):
        p = backcopy.probabilities(ids)
        own = np.log(p, where=p > 0, out=np.zeros_like(p))
        found.append((p * (own - logs)).sum(-1))
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
        rounded: Of what norms give to matrix products, which W8A8 rounds, mean of the norms.
        largest: Largest of these numbers over their mean square root, mean of the layers.
        gap: What W8A8 loses, nats per character.
        error: Standard error of `gap`, over the texts.
    """

    loss: float
    kurtosis: float
    rounded: float
    largest: float
    gap: float
    error: float


def outliers(setting: str, variant: str, seed: int) -> Outliers:
    """Measures one trained model.

    Args:
        setting: `backcopy` or `text`.
        variant: `softmax`, `clipped` or `gated`.
        seed: Of its weights and batches.
    """
    from benchmarks.small_models import attention_lms, backcopy, backcopy_lms  # need PyTorch

    if setting == "backcopy":
        module = backcopy_lms.module(backcopy_lms.model(variant, seed))
        batches = list(backcopy.held_out(_WINDOWS, 32))
        samples, losses = backcopy_lms.calibration(_CALIBRATION), _divergences
    else:
        module = attention_lms.module(attention_lms.model(variant, "packed", seed))
        batches = list(attention_lms.held_out_documents(_WINDOWS, 32))
        samples = attention_lms.training_windows(_CALIBRATION_SEED, _CALIBRATION)
        losses = _log_losses
    regraft.apply(module, "canonicalize,fuse", check="off")
    stream = [residual.output for chain in streams(module.graph) for residual in chain]
    normed = {
        each.x for each in linears(module.graph)
        if each.x.producer is not None and each.x.producer.op in _NORMS
    }  # fmt: skip
    kurtosis, rounded, largest = [], [], []
    for found in OrtActivations().activations(module, [*stream, *normed], batches[:2]):
        values = {value: found[value] for value in stream}
        kurtosis += [_kurtosis(x) for x in values.values()]
        largest += [float(np.abs(x).max() / np.sqrt(np.mean(x**2))) for x in values.values()]
        rounded += [_kurtosis(found[value]) for value in normed]
    before = losses(module, batches).mean(-1)
    _QUANTIZE.run(module, Context(samples=samples, activations=OrtActivations()))
    lost = losses(module, batches).mean(-1) - before
    return Outliers(
        float(before.mean()), float(np.mean(kurtosis)), float(np.mean(rounded)),
        float(np.mean(largest)),
        float(lost.mean()), float(lost.std(ddof=1) / math.sqrt(len(lost))),
    )  # fmt: skip


def _outliers(settings: Settings) -> Iterator[Row]:
    for setting, text in (("backcopy", "Bigram-Backcopy"), ("text", "packed documents")):
        found = {
            name: [outliers(setting, name, seed) for seed in SEEDS]
            for name in ("softmax", "clipped", "gated")
        }
        for name, runs in found.items():
            for what, unit in _UNITS.items():
                values = [getattr(run, what) for run in runs]
                each = ", ".join(f"{value:.4g}" for value in values)
                if what == "gap":
                    each += f", standard error at most {max(run.error for run in runs):.1g}"
                yield shown(
                    f"{text}, {name}: {_NAMES[what]}", float(np.mean(values)), unit,
                    f"seeds: {each}",
                )  # fmt: skip
        for name in ("clipped", "gated"):
            for what in ("kurtosis", "gap"):
                own, base = ([getattr(run, what) for run in found[n]] for n in (name, "softmax"))
                lower = sum(a < b for a, b in zip(own, base, strict=True))
                row = f"{text}: {_NAMES[what]}, {name} / softmax"
                ratio = float(np.mean(own) / np.mean(base))
                note = f"mean of {len(SEEDS)} seeds, lower in {lower}"
                if setting == "backcopy":
                    yield at_most(row, ratio, 1.0, "x", note)
                else:
                    yield shown(row, ratio, "x", note)


_UNITS = {"loss": "nats", "kurtosis": "", "rounded": "", "largest": "x", "gap": "nats"}
_NAMES = {
    "loss": "held-out loss per character",
    "kurtosis": "kurtosis of what layers give",
    "rounded": "kurtosis of what norms give, which is rounded",
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
