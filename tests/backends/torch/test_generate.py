"""The generated source: what it looks like and what it computes."""

from __future__ import annotations

import linecache

import numpy as np
import pytest

from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.text import parse_module
from tests.backends.torch.models import (
    assert_same_outputs,
    layer_inputs,
    layers,
    model_class,
    torch,
)

from regraft.backends.torch import source_of, to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner  # isort: skip

SOURCE = '''\
class Layer(Scope):
    """`net.layer.0` to `1`: 2 equal parts."""

    def __init__(self) -> None:
        super().__init__()
        parameter(self, "up.weight", (16, 8))
        parameter(self, "up.bias", (16,))
        parameter(self, "down.weight", (8, 16))

    def forward(self, x: Tensor, wide: Tensor) -> Tensor:
        up = F.linear(x, self.up.weight, self.up.bias)
        r0 = F.relu(up)
        down = F.linear(r0, self.down.weight)
        z0 = down * wide
        return x + z0


class Model(Scope):
    def __init__(self) -> None:
        super().__init__()
        for i in range(2):
            part(self, f"net.layer.{i}", Layer())
        parameter(self, "head.weight", (8, 8))
        parameter(self, "head.bias", (8,))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b = x.shape[0]
        s = x.shape[1]
        wide = mask * 0.5
        h1 = x
        for i in range(2):
            h1 = self.net.layer[i](h1, wide)
        head = F.linear(h1, self.head.weight, self.head.bias)
        return head.reshape(b * s, 2, 4)
'''


def test_source_of_layers_is_a_class_and_a_loop() -> None:
    net = to_torch(layers())
    assert model_class(source_of(net)) == SOURCE


def test_names_of_parameters_are_those_of_the_model() -> None:
    module = layers()
    net = to_torch(module)
    assert set(net.state_dict()) == set(module.weights)
    assert all(parameter.requires_grad for parameter in net.parameters())
    weight = module.weights["head.weight"].numpy()
    np.testing.assert_array_equal(net.state_dict()["head.weight"].numpy(), weight)


@pytest.mark.parametrize("batch", [1, 5])
def test_outputs_equal_those_of_the_evaluator(batch: int) -> None:
    module = layers()
    inputs = layer_inputs(batch)
    assert_same_outputs(module, TorchRunner(to_torch(module), module)(inputs), inputs)


def test_training_a_net_does_not_change_the_module() -> None:
    module = layers()
    before = module.weights["head.bias"].numpy().copy()
    net = to_torch(module)
    with torch.no_grad():
        net.head.bias.add_(1)
    np.testing.assert_array_equal(module.weights["head.bias"].numpy(), before)


def test_tracebacks_show_generated_lines() -> None:
    net = to_torch(layers())
    file_name = net.forward.__code__.co_filename
    assert "F.linear" in "".join(linecache.getlines(file_name))


def test_operators_without_a_form_are_listed_before_work_begins() -> None:
    module = parse_module("""
graph(%x : f32[2]) {
  %a = opaque(%x) {dialect = "onnx:acme", op_type = "Foo"} : f32[2]
  %b = opaque(%a) {dialect = "onnx:acme", op_type = "Foo"} : f32[2]
  return %b
}
""")
    with pytest.raises(UnsupportedError, match=r"`Foo` of onnx:acme: `a`, `b`"):
        to_torch(module)


def test_unknown_word_for_states_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="kept"):
        to_torch(layers(), states="kept")


def test_inputs_get_valid_names_and_outputs_their_structure() -> None:
    module = parse_module("""
graph(%"in:0" : f32[2], %class : f32[2]) {
  %a = add(%"in:0", %class)
  %b = relu(%a)
  return %a as %"sum.0", %b
}
""")
    module.meta["torch.outputs"] = {"sum": ("sum.0", None), "b": "b"}
    net = to_torch(module)
    assert "def forward(self, in_0: Tensor, class_: Tensor):" in source_of(net)
    one, two = torch.tensor([1.0, -3.0]), torch.tensor([1.0, 1.0])
    result = net(one, two)
    assert result["sum"][1] is None
    assert result["sum"][0].tolist() == [2.0, -2.0]
    assert result["b"].tolist() == [2.0, 0.0]


def test_large_values_that_are_dead_for_long_are_deleted() -> None:
    lines = "\n".join(f"  %r{i} = relu(%{'y' if i == 0 else f'r{i - 1}'})" for i in range(30))
    module = parse_module(f"""
graph(%x : f32[2]) {{
  %big = mul(%x, %x)
  %y = add(%big, %x)
{lines}
  return %r29
}}
""")
    assert "        del big\n" in source_of(to_torch(module))


def test_states_that_the_module_holds_are_buffers() -> None:
    module = parse_module("""
weight @total : f32[2] role=buffer = [1.0, 2.0]
state "total" buffer "total" -> "total.next"
graph(%x : f32[2], %total : f32[2]) {
  %next = add(%total, %x)
  %y = mul(%next, %x)
  return %y, %next as %total.next
}
""")
    net = to_torch(module)
    x = torch.tensor([1.0, 1.0])
    assert net(x).tolist() == [2.0, 3.0]
    assert net(x).tolist() == [3.0, 4.0]
    assert net.state_dict()["total"].tolist() == [3.0, 4.0]
    explicit = to_torch(module, states="explicit")
    assert [r.tolist() for r in explicit(x, x)] == [[2.0, 2.0], [2.0, 2.0]]
