"""Weights of 4 bits: closeness and calibration time on a sentence encoder, speed of one product."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import regraft
from benchmarks.measure import MB, Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.quant_encoder import quantized
from benchmarks.quant_encoder_data import FOLDER, cosines, embeddings, encoder, session
from benchmarks.timing import Ratio, interleaved, ratio
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

ROUNDING = Quantize(weights="uint4", method="round")
CALIBRATED = Quantize(weights="uint4")
_COSINE = (0.992, 0.982)
_RECOVERED = 70.0
_SENTENCES = 512
_MINUTES = 5.0
_CORES = 2
_K, _N = 1024, 4096
_FORMS = (
    ("uint4", 256), ("uint4", 128), ("int4", 128), ("uint4", 32), ("uint8", 128), ("uint8", 32),
)  # fmt: skip
_MIN_TURN_S = 0.02


def _int4(settings: Settings) -> Iterator[Row]:
    source = encoder()
    int8, _ = quantized(source, Quantize(), "accurate")
    found = {}
    for name, options in {"rounded": ROUNDING, "calibrated": CALIBRATED}.items():
        path, seconds = quantized(source, options, f"int4-{name}", _SENTENCES)
        found[name] = cosines(source.reference, embeddings(path, source.test))
    mean, worst = float(found["calibrated"].mean()), float(found["calibrated"].min())
    plain = float(found["rounded"].mean())
    note = f"{len(found['rounded'])} sentences"
    yield shown("4 bits, rounded: cosine, mean", plain, "", note)
    yield shown("4 bits, rounded: cosine, worst", float(found["rounded"].min()), "")
    yield at_least("4 bits, group 32: cosine, mean", mean, _COSINE[0], "", note)
    yield at_least("4 bits, group 32: cosine, worst", worst, _COSINE[1], "")
    yield at_least(
        "error of rounding that is recovered", 100 * (mean - plain) / (1 - plain), _RECOVERED, "%"
    )
    # other programs on the cores do not count: 5 minutes of two cores are 10 of CPU time
    yield at_most(
        "CPU time of calibration and saving", seconds / 60, _MINUTES * _CORES, "min",
        f"{_SENTENCES} sentences",
    )  # fmt: skip
    size = path.stat().st_size / MB
    yield at_most("4 bits: file", size, int8.stat().st_size / MB, "MB", "bar: the int8 file")


def _product(path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(size=(_K, _N)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", _K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", _N])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def _gemv(settings: Settings) -> Iterator[Row]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    plain = FOLDER / "product.onnx"
    _product(plain)
    fastest: tuple[str, Ratio] | None = None
    for weights, group in _FORMS:
        name = f"{weights} in groups of {group}"
        module = regraft.load(plain)
        Quantize(weights=weights, group=group, method="round").run(module, Context())
        path = FOLDER / f"product-{weights}-{group}.onnx"
        path.unlink(missing_ok=True)
        regraft.apply(module, "legalize{target=ort-cpu}", check="off")
        regraft.save(module, path, target="ort-cpu")
        sessions = [session(plain), session(path)]
        for rows in (1, 16):
            x = {"x": np.random.default_rng(1).normal(size=(rows, _K)).astype(np.float32)}
            calls = [partial(each.run, None, x) for each in sessions]
            seconds = interleaved(
                calls, 5 * settings.rounds, min_turn_s=_MIN_TURN_S, clock=time.thread_time
            )
            found = ratio(*seconds)
            label = f"{rows}x{_K} by {_K}x{_N}, {name}: speed against fp32"
            yield shown(label, found.median, "x", str(found))
            if rows == 1 and (fastest is None or found.median > fastest[1].median):
                fastest = name, found
    assert fastest is not None
    name, found = fastest
    label = f"1x{_K} by {_K}x{_N}, the fastest form: speed against fp32"
    yield Row(label, found.median, "x", 6.0, "at least", f"{name}: {found}", found.high)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("encoder-int4", "4-bit weights of the sentence encoder", _int4),
    Measurement("gemv", "one row by a matrix of 4 or 8 bits", _gemv),
)
