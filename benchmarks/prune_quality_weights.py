"""Sparse and factored weights of the real sentence encoder: errors, bounds, quality, speed."""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, held, shown
from benchmarks.quant_encoder_data import (
    FOLDER,
    Encoder,
    Feed,
    cosines,
    embeddings,
    encoder,
    session,
    shaped,
)
from benchmarks.suite import run
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.module import Module
from regraft.passes.calibration.moments import gather_moments
from regraft.passes.calibration.tied import matrices_of
from regraft.passes.factorize.factorize import Factorize
from regraft.passes.factorize.families import Method as FactorMethod
from regraft.passes.protocol import Context, Pass, PassResult
from regraft.passes.sparsity.masks import pattern_of
from regraft.passes.sparsity.methods import Layer, Method, sparse
from regraft.passes.sparsity.sparsify import Sparsify

Array = np.ndarray[Any, Any]

_SAMPLES = 64
_TESTED = 60
_METHODS: tuple[Method, ...] = ("magnitude", "wanda", "sparsegpt")
_FACTORS: tuple[FactorMethod, ...] = ("svd", "whitened", "block-dense", "block-shuffle", "mpo")
_SHARE = 0.95
"""Of the layers on which SparseGPT <= Wanda <= magnitude."""
_MIN_TURN_S = 0.1
_RATE = 0.4


def module_of(source: Encoder) -> Module:
    """Returns the encoder, canonical and fused."""
    module = regraft.load(source.path)
    regraft.apply(module, "canonicalize,fuse", check="off")
    return module


def _context(feeds: Sequence[Feed]) -> Context:
    return Context(samples=feeds, activations=OrtActivations())


def _errors(source: Encoder, text: str) -> dict[str, dict[Method, float]]:
    """Returns the error of the results of every layer, on its own inputs, by method."""
    module, pattern = module_of(source), pattern_of(text)
    items, _ = matrices_of(module)
    products = [each for item in items for each in item.products]
    found = gather_moments(module, products, _context(source.calibration_feeds(_SAMPLES)), text)
    errors: dict[str, dict[Method, float]] = {}
    for item in items:
        layer = Layer(item.name, item.stack(), item.moments(found))
        errors[item.name] = {
            method: layer.error(sparse(layer, method, pattern, 0.5)) for method in _METHODS
        }
    return errors


def _layers(settings: Settings) -> Iterator[Row]:
    source = encoder()
    for text in ("2:4", "unstructured"):
        errors = _errors(source, text)
        for method in _METHODS:
            mean = float(np.mean([each[method] for each in errors.values()]))
            yield shown(f"{text}, {method}: mean error of {len(errors)} layers", mean, "")
        ordered = [
            each["sparsegpt"] <= each["wanda"] <= each["magnitude"] for each in errors.values()
        ]
        off = [name for name, is_fine in zip(errors, ordered, strict=True) if not is_fine]
        yield at_least(
            f"{text}: layers with SparseGPT <= Wanda <= magnitude", float(np.mean(ordered)), _SHARE,
            "of layers", ", ".join(off),
        )  # fmt: skip


def changed(source: Encoder, item: Pass) -> tuple[Module, PassResult]:
    """Returns the encoder after a pass that may look at the calibration sentences."""
    module = module_of(source)
    return module, item.run(module, _context(source.calibration_feeds(_SAMPLES)))


def saved(module: Module, name: str) -> Path:
    """Writes a module for ONNX Runtime and returns the file."""
    path = FOLDER / f"weights-{name}.onnx"
    path.unlink(missing_ok=True)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, path, target="ort-cpu")
    return path


def embedded(path: Path, source: Encoder, count: int = _TESTED) -> Array:
    """Returns the embeddings of the first test sentences."""
    return embeddings(path, source.test[:count])


def _quality(settings: Settings) -> Iterator[Row]:
    source = encoder()
    reference = source.reference[:_TESTED]
    for text in ("2:4", "unstructured"):
        for method in _METHODS:
            module, result = changed(source, Sparsify(pattern=text, method=method))
            if text == "2:4":
                items, _ = matrices_of(module)
                stacks = [item.stack() for item in items]
                counts = [
                    (s != 0).reshape(len(s), -1, 4, s.shape[2]).sum(2).ravel() for s in stacks
                ]
                every = np.concatenate(counts)
                yield held(
                    f"2:4, {method}: two of four in every group", bool((every == 2).all()),
                    f"{every.size:,} groups of {len(items)} layers",
                )  # fmt: skip
            path = saved(module, f"{method}-{text.replace(':', '-')}")
            mean = float(cosines(reference, embedded(path, source)).mean())
            yield shown(f"{text}, {method}: cosine of embeddings, mean", mean, "",
                        f"{result.stats['sparsity']:.3f} zeros")  # fmt: skip


def _factors(settings: Settings) -> Iterator[Row]:
    source = encoder()
    reference = source.reference[:_TESTED]
    dense = saved(module_of(source), "dense")
    runner = session(dense)
    for method in _FACTORS:
        module, result = changed(source, Factorize(method=method, rate=_RATE))
        bounds = result.decisions["bounds"]
        # factors are rounded to f32
        off = [each for each in result.layers if each.error > bounds[each.name] * (1 + 1e-5) + 1e-6]
        yield held(
            f"{method}: errors within their bounds", not off,
            f"{len(result.layers)} layers, worst error {result.layers[0].error:.3f}",
        )  # fmt: skip
        path = saved(module, method)
        mean = float(cosines(reference, embedded(path, source)).mean())
        kept = result.stats["numbers"] / result.stats["numbers-before"]
        yield shown(f"{method}: cosine of embeddings, mean", mean, "", f"{kept:.2f} of the numbers")
        other = session(path)
        feed = shaped(8, 128)
        times = interleaved(
            (partial(runner.run, None, feed), partial(other.run, None, feed)), settings.rounds,
            min_turn_s=_MIN_TURN_S, clock=time.thread_time,
        )  # fmt: skip
        speed = ratio(times[0], times[1])
        name = f"{method}: speed in ONNX Runtime at 8 x 128, dense = 1"
        if method in ("svd", "whitened"):
            yield Row(name, speed.median, "x", 1.0, "at least", str(speed), speed.low)
        else:
            yield shown(name, speed.median, "x", str(speed))


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("layers", "errors of sparse layers of the real encoder, by method", _layers),
    Measurement("sparse", "patterns of zeros, and what they do to embeddings", _quality),
    Measurement("factors", "bounds, embeddings and speed of factored layers", _factors),
)

if __name__ == "__main__":
    sys.exit(run("prune_quality", __doc__ or "", MEASUREMENTS))
