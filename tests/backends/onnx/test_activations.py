"""Values inside a module: large weights are fed, not loaded."""

import numpy as np
import pytest

from regraft.backends.onnx import activations
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.save import to_proto
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
    # a weight that nothing reads any more would be written into the model all the same
    initializers = [each.name for each in to_proto(module, profile="ort-cpu").graph.initializer]
    assert initializers == ["w"]
