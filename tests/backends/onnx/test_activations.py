"""Values inside a module: large weights are fed, not loaded."""

import numpy as np
import pytest

from regraft.backends.onnx import activations
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.text import parse_module

TEXT = """
module "net"
symbol B
weight @table : f32[50, 16] = random(1)
weight @w : f32[16, 16] = random(2)
graph(%ids : i64[B, 3]) {
  %table = weight @table
  %w = weight @w
  %x = gather(%table, %ids) {axis = 0}
  %a = matmul(%x, %w)
  %r = relu(%a)
  %y = matmul(%r, %w)
  return %y
}
"""
SAMPLES = [{"ids": np.array([[1, 2, 49]])}, {"ids": np.array([[0, 0, 7], [3, 4, 5]])}]


def _values():
    module = parse_module(TEXT)
    value = next(node.output for node in module.graph if node.op.name == "relu")
    result = module.graph.outputs[0]
    found = list(OrtActivations().activations(module, [value, result], SAMPLES))
    assert [each.name for each in module.graph.inputs] == ["ids"]  # the module is as it was
    return [[item[value], item[result]] for item in found]


def test_values_are_the_same_when_weights_are_fed(monkeypatch: pytest.MonkeyPatch):
    plain = _values()
    monkeypatch.setattr(activations, "_FED_BYTES", 1)
    fed = _values()
    for want, got in zip(plain, fed, strict=True):
        for one, other in zip(want, got, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_what_is_fed_is_the_weights_above_the_size(monkeypatch: pytest.MonkeyPatch):
    module = parse_module(TEXT)
    monkeypatch.setattr(activations, "_FED_BYTES", 4 * 50 * 16)
    fed = activations._fed_weights(module)
    np.testing.assert_array_equal(fed["fed_weight_0"], module.weights["table"].numpy())
    assert list(fed) == ["fed_weight_0"]
    assert [each.name for each in module.graph.inputs] == ["ids", "fed_weight_0"]


CODES = """
module "codes"
symbol B
weight @c : u4[32, 8] = random(1)
weight @s : f32[2, 8] = random(2)
graph(%x : f32[B, 32]) {
  %c = weight @c
  %s = weight @s
  %w = dequantize(%c, %s) {axis = 0, block_size = 16}
  %y = matmul(%x, %w)
  %r = relu(%y)
  return %r
}
"""


def test_large_codes_are_run_as_they_are_written(monkeypatch: pytest.MonkeyPatch):
    module = parse_module(CODES)
    value = next(node.output for node in module.graph if node.op.name == "matmul")
    rows = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    assert not activations._has_large_codes(module)
    monkeypatch.setattr(activations, "_FED_BYTES", 4 * 32 * 8)
    assert activations._has_large_codes(module)
    (found,) = OrtActivations().activations(module, [value], [{"x": rows}])
    codes = module.weights["c"].numpy().astype(np.float32)
    matrix = codes * np.repeat(module.weights["s"].numpy(), 16, 0)
    np.testing.assert_allclose(found[value], rows @ matrix, rtol=1e-5, atol=1e-4)
