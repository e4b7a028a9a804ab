"""int8 of a real sentence encoder: how close, how fast, how large, beside ONNX Runtime's tools."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import regraft
from benchmarks.measure import MB, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.quant_encoder_data import (
    BATCH,
    FOLDER,
    SHAPES,
    Encoder,
    cosines,
    embeddings,
    encoder,
    invariance,
    session,
    shaped,
)
from benchmarks.suite import hardware
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.activations import OrtActivations
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

PROFILES = {
    "accurate": Quantize(),
    "fast": Quantize(activations="static"),
}
_COSINES = {"accurate": (0.9992, 0.9985), "fast": (0.998, 0.994)}
_SPEEDS = {"accurate": 1.6, "fast": 1.9}
_STOCK_STATIC = 0.94
"""What static ranges of ONNX Runtime's tool reach where ours reach 0.998."""
_INVARIANT = 0.99999
_MIN_TURN_S = 0.1


def quantized(
    source: Encoder, options: Quantize, name: str, count: int = 128
) -> tuple[Path, float]:
    """Returns the encoder quantized and saved, and the CPU seconds that it took."""
    start = time.process_time()
    module = regraft.load(source.path)
    regraft.apply(module, "canonicalize,fuse", check="off")
    options.run(
        module, Context(samples=source.calibration_feeds(count), activations=OrtActivations())
    )
    path = FOLDER / f"{name}.onnx"
    path.unlink(missing_ok=True)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, path, target="ort-cpu")
    return path, time.process_time() - start


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # of a package without types
    def __init__(self, feeds: Sequence[Any]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def stock(source: Encoder) -> dict[str, Path]:
    """Returns what ONNX Runtime's own tools make of the encoder, by how they are called."""
    prepared = FOLDER / "stock-prepared.onnx"
    # its tools fail on operators of ONNX Runtime itself, which its optimizer would put in
    quant_pre_process(source.path, prepared, skip_optimization=True, skip_symbolic_shape=True)
    products = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "MatMul"]
    paths = {
        name: FOLDER / f"stock-{name.replace(' ', '-')}.onnx"
        for name in ("dynamic", "dynamic per channel", "static", "static per channel, products")
    }
    outputs = list(paths.values())
    quantize_dynamic(prepared, outputs[0])
    quantize_dynamic(prepared, outputs[1], per_channel=True)
    feeds = source.calibration_feeds(64)
    for path, options in ((outputs[2], {}), (outputs[3], {
        "per_channel": True, "nodes_to_quantize": _constant(prepared, products),
    })):  # fmt: skip
        quantize_static(
            prepared, path, _Reader(feeds), activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, **options,
        )  # fmt: skip
    return paths


def _constant(path: Path, products: Sequence[str]) -> list[str]:
    """Returns the products by a constant matrix."""
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    wanted = set(products)
    return [n.name for n in graph.node if n.name in wanted and n.input[1] in constants]


def _flags() -> Row:
    found = hardware()
    flags = found["flags"]
    assert isinstance(flags, list)
    note = f"{found['cpu']}: {' '.join(flags)}"
    return held("AVX-512 VNNI, which the bars are for", "avx512_vnni" in flags, note)


def _closeness(source: Encoder, name: str, path: Path) -> tuple[float, float, Row, Row]:
    found = cosines(source.reference, embeddings(path, source.test))
    mean, worst = float(found.mean()), float(found.min())
    note = f"{len(found)} sentences"
    bars = _COSINES.get(name)
    if bars is None:
        return (
            mean,
            worst,
            shown(f"{name}: cosine, mean", mean, "", note),
            shown(f"{name}: cosine, worst", worst, ""),
        )
    return (
        mean, worst, at_least(f"{name}: cosine, mean", mean, bars[0], "", note),
        at_least(f"{name}: cosine, worst", worst, bars[1], ""),
    )  # fmt: skip


def _int8(settings: Settings) -> Iterator[Row]:
    yield _flags()
    source = encoder()
    paths = {name: quantized(source, each, name)[0] for name, each in PROFILES.items()}
    rivals = {f"stock {name}": path for name, path in stock(source).items()}
    best, reached = "", -1.0
    static: list[float] = []
    for name, path in {**paths, **rivals}.items():
        mean, _, *rows = _closeness(source, name, path)
        yield from rows
        if name.startswith("stock static"):
            static.append(mean)
        size = path.stat().st_size / MB
        if name in paths:
            yield at_least(
                f"{name}: batch 1 against {BATCH}", invariance(path, source.test), _INVARIANT, ""
            )
            yield at_most(f"{name}: file", size, 26.0, "MB")
            continue
        yield shown(f"{name}: batch 1 against {BATCH}", invariance(path, source.test), "")
        yield shown(f"{name}: file", size, "MB")
        if mean > reached:
            best, reached = name, mean
    yield at_most("static, the better of stock: cosine, mean", max(static), _STOCK_STATIC, "",
                  "`fast` is static as well")  # fmt: skip
    yield from _speeds(settings, source, {**paths, best: rivals[best]}, best)


def _speeds(
    settings: Settings, source: Encoder, paths: dict[str, Path], best: str
) -> Iterator[Row]:
    sessions = {"fp32": session(source.path)} | {n: session(p) for n, p in paths.items()}
    for batch, length in SHAPES:
        feed = shaped(batch, length)
        calls = [partial(each.run, None, feed) for each in sessions.values()]
        # one thread, so that its own clock leaves out what else the machine does
        seconds = dict(zip(sessions, interleaved(
            calls, settings.rounds, min_turn_s=_MIN_TURN_S, clock=time.thread_time
        ), strict=True))  # fmt: skip
        for name in paths:
            found = ratio(seconds["fp32"], seconds[name])
            label = f"{name}: speed against fp32 at {batch}x{length}"
            bar = _SPEEDS.get(name) if batch == 1 else None
            yield (
                shown(label, found.median, "x", str(found))
                if bar is None
                else Row(label, found.median, "x", bar, "at least", str(found), found.high)
            )
        found = ratio(seconds[best], seconds["fast"])
        yield Row(
            f"fast against {best} at {batch}x{length}", found.median, "x", 1.05, "at least",
            str(found), found.high,
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("encoder-int8", "int8 of the sentence encoder beside ONNX Runtime's tools", _int8),
)
