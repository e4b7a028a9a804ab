"""Convolutions in 8 bits: ONNX Runtime's integer kernels run them, close to the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization.convolutions import quantize_convolutions
from regraft.passes.quantization.formats import INT8

SIDE, WIDE = 20, 64

NET = f"""
module "net"
symbol B
weight @stem : f32[{WIDE}, 3, 3, 3] = random(1)
weight @a : f32[{WIDE}, {WIDE}, 3, 3] = random(2)
weight @b : f32[{WIDE}, {WIDE}, 3, 3] = random(3)
weight @bias : f32[{WIDE}] = random(4)
weight @depth : f32[{WIDE}, 1, 7, 7] = random(5)

graph(%x : f32[B, 3, {SIDE}, {SIDE}]) {{
  %stem = weight @stem
  %a = weight @a
  %b = weight @b
  %bias = weight @bias
  %depth = weight @depth
  %s = conv(%x, %stem) {{pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}}
  %r = relu(%s)
  %c = conv(%r, %a, %bias) {{pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}}
  %d = relu(%c)
  %e = conv(%d, %b) {{pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}}
  %f = add(%e, %r)
  %g = relu(%f)
  %m = max_pool(%g) {{kernel = [2, 2], strides = [2, 2], dilations = [1, 1], pads = [0, 0, 0, 0]}}
  %h = conv(%m, %a, %bias) {{pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}}
  %y = conv(%h, %depth)
    {{pads = [3, 3, 3, 3], strides = [1, 1], dilations = [1, 1], groups = {WIDE}}}
  return %y
}}
"""


def samples(count: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(count)]


def context() -> Context:
    return Context(samples=samples(), activations=OrtActivations())


def nothing(name: str) -> bool:
    return False


def kernels(proto: Any, folder: Path) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("criterion", ["minmax", "percentile", "mse", "entropy"])
def test_outputs_stay_within_the_rounding(criterion: Any) -> None:
    module, reference = parse_module(NET), parse_module(NET)
    report = quantize_convolutions(module, context(), INT8, criterion, nothing)
    assert (report.num_int8, report.num_float) == (4, 1)
    total = scale = 0.0
    for sample in samples():
        want, got = (evaluate(each, sample)["y"] for each in (reference, module))
        total += float(np.square(got - want).sum())
        scale += float(np.square(want).sum())
    # seven roundings of 8 bits on the way, those of normal numbers about 1 % each; entropy cuts
    # more of the ends off
    assert 1e-4 < (total / scale) ** 0.5 < (0.12 if criterion == "entropy" else 0.05)


def test_kernels_take_the_codes(tmp_path: Path) -> None:
    module = parse_module(NET)
    quantize_convolutions(module, context(), INT8, "minmax", nothing)
    proto = to_proto(module, profile="ort-cpu")
    used = kernels(proto, tmp_path)
    assert used.count("QLinearConv") == 4
    assert used.count("QLinearAdd") == 1
    assert used.count("QuantizeLinear") == 1  # behind the float stem
    assert used.count("DequantizeLinear") == 1  # of what is returned


def test_what_stays_in_float_says_why() -> None:
    module = parse_module(NET)
    report = quantize_convolutions(module, context(), INT8, "minmax", lambda name: name == "a")
    reasons = {skip.node: skip.reason for skip in report.skipped}
    assert reasons["a"] == "kept by option"
    assert "input channels" in reasons["stem"]


def test_without_samples_nothing_changes() -> None:
    module = parse_module(NET)
    before = str(module)
    report = quantize_convolutions(module, Context(), INT8, "minmax", nothing)
    assert str(module) == before
    assert "--calibrate" in report.skipped[-1].reason


def test_nan_is_named() -> None:
    bad = samples(1)
    bad[0]["x"][0, 0, 0, 0] = np.nan
    ctx = Context(samples=bad, activations=OrtActivations())
    with pytest.raises(UsageError, match="holds NaN or Inf"):
        quantize_convolutions(parse_module(NET), ctx, INT8, "minmax", nothing)
