"""The sentence encoder pruned and in 8 bits: speed, and whether similarities keep their order."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, shown
from benchmarks.quant_encoder_data import FOLDER, cosines, embeddings, encoder, session, shaped
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.activations import OrtActivations
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.quality.correlation import spearman
from regraft.passes.quantization import Quantize

Array = np.ndarray[Any, Any]

_FLOPS = "flops:0.97"
"""What pruning takes beyond it costs more order than speed: it is not repaired here."""
_SHAPE = (1, 128)
_SPEED, _ORDER = 2.5, 0.99
_MIN_TURN_S = 0.1
_PRUNED_ON = 32


def _pruned(settings: Settings) -> Iterator[Row]:
    source = encoder()
    module = regraft.load(source.path)
    regraft.apply(module, "canonicalize,fuse", check="off")
    for step, count in ((Prune(_FLOPS), _PRUNED_ON), (Quantize(activations="static"), 128)):
        feeds = source.calibration_feeds(count)
        step.run(module, Context(samples=feeds, activations=OrtActivations()))
    path = FOLDER / "pruned-int8.onnx"
    path.unlink(missing_ok=True)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, path, target="ort-cpu")
    found = embeddings(path, source.test)
    close = cosines(source.reference, found)
    name = f"{_FLOPS}, then int8"
    pairs = np.triu_indices(len(found), 1)
    before, after = ((each @ each.T)[pairs] for each in (_units(source.reference), _units(found)))
    yield at_least(f"{name}: Spearman of similarities of pairs", spearman(before, after), _ORDER,
                   "", f"{len(before)} pairs")  # fmt: skip
    yield shown(f"{name}: cosine, mean", float(close.mean()), "")
    yield shown(f"{name}: cosine, worst", float(close.min()), "")
    calls = [partial(session(each).run, None, shaped(*_SHAPE)) for each in (source.path, path)]
    times = interleaved(calls, settings.rounds, min_turn_s=_MIN_TURN_S, clock=time.thread_time)
    speed = ratio(*times)
    yield Row(f"{name}: speed against fp32 at 1x128", speed.median, "x", _SPEED, "at least",
              str(speed), speed.high)  # fmt: skip


def _units(rows: Array) -> Array:
    """Returns rows of length 1, f64[N, D]."""
    wide: Array = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("encoder-pruned", "the sentence encoder pruned and in 8 bits", _pruned),
)
