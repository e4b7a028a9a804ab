"""Modules of bf16 are calibrated in f32."""

import ml_dtypes
import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

WIDTH = 64
TEXT = f"""
module "net"
symbol B
weight @w : bf16[{WIDTH}, {WIDTH}] = random(1)
weight @v : bf16[{WIDTH}, {WIDTH}] = random(2)
graph(%x : f32[B, {WIDTH}]) {{
  %h = cast(%x) {{to = bf16}}
  %w = weight @w
  %a = matmul(%h, %w)
  %r = relu(%a)
  %v = weight @v
  %b = matmul(%r, %v)
  %y = cast(%b) {{to = f32}}
  return %y
}}
"""


def samples():
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(16, WIDTH)).astype(np.float32)} for _ in range(4)]


def test_values_of_bf16_are_given_as_f32():
    module = parse_module(TEXT)
    value = next(node.output for node in module.graph if node.op.name == "relu")
    found = [item[value] for item in OrtActivations().activations(module, [value], samples())]
    matrix = module.weights["w"].numpy().astype(np.float32)
    for sample, array in zip(samples(), found, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, np.maximum(sample["x"] @ matrix, 0), rtol=1e-4, atol=1e-4)
    assert module.weights["w"].numpy().dtype == ml_dtypes.bfloat16  # the module is as it was
    assert value.dtype is not None
    assert value.dtype.numpy == ml_dtypes.bfloat16


@pytest.mark.parametrize("method", ["search", "gptq"])
def test_layers_of_bf16_are_rounded_on_samples(method):
    module, before = parse_module(TEXT), parse_module(TEXT)
    context = Context(samples=samples(), activations=OrtActivations())
    result = Quantize(weights="uint4", method=method).run(module, context)
    assert result.stats["linear-layers"] == 2
    lost = whole = 0.0
    for sample in samples():
        (want,), (got,) = evaluate(before, sample).values(), evaluate(module, sample).values()
        lost += float(np.square(got - want).sum())
        whole += float(np.square(want).sum())
    assert 0 < lost / whole < 0.02
