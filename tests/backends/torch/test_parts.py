"""Repeated parts: which become one class, and how they are called."""

from __future__ import annotations

import pytest

from regraft.ir.text import parse_module
from tests.backends.torch.models import LAYERS, assert_same_outputs, layer_inputs, torch

from regraft.backends.torch import source_of, to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner  # isort: skip


def _net(text: str) -> tuple[str, torch.nn.Module]:
    module = parse_module(text)
    net = to_torch(module)
    inputs = layer_inputs()
    assert_same_outputs(module, TorchRunner(net, module)(inputs), inputs)
    return source_of(net), net


def test_equal_layers_become_one_class() -> None:
    source, net = _net(LAYERS)
    assert "class Layer(Scope)" in source
    assert type(net.net.layer[0]) is type(net.net.layer[1])


def test_number_at_the_end_of_a_name_is_no_number_of_a_part() -> None:
    source, _ = _net(LAYERS.replace("net.layer.", "stage1."))
    assert "self.stage1[i](" in source


def test_variable_that_only_the_first_layer_reads_carries_the_stream() -> None:
    source, _ = _net(LAYERS.replace("%m0 = matmul(%x,", "%c = relu(%x)\n  %m0 = matmul(%c,")
                     .replace("add(%x, %z0)", "add(%c, %z0)"))  # fmt: skip
    assert "            c = self.net.layer[i](c, wide)\n" in source


def test_layers_that_compute_differently_stay_apart() -> None:
    source, _ = _net(LAYERS.replace("%r1 = relu(%a1)", "%r1 = sigmoid(%a1)"))
    assert "class Layer" not in source


def test_layers_of_different_width_stay_apart() -> None:
    text = LAYERS.replace(
        '1.up.weight" : f32[16, 8]', '1.up.weight" : f32[12, 8]'
    ).replace('1.up.bias" : f32[16]', '1.up.bias" : f32[12]').replace(
        '1.down.weight" : f32[8, 16]', '1.down.weight" : f32[8, 12]'
    )  # fmt: skip
    source, _ = _net(text)
    assert "class Layer" not in source


def test_values_inside_layers_that_are_outputs_are_returned_by_each_call() -> None:
    text = LAYERS.replace("return %out", "return %out, %r0, %r1")
    source, _ = _net(text)
    assert "class Layer(Scope)" in source
    assert "self.net.layer[0](" in source
    assert "self.net.layer[1](" in source


def test_layers_called_in_another_order_than_numbered_are_called_so() -> None:
    swapped = LAYERS.replace("layer.0.", "layer.X.").replace("layer.1.", "layer.0.")
    source, _ = _net(swapped.replace("layer.X.", "layer.1."))
    assert "in (1, 0):" in source


@pytest.mark.parametrize("name", ["net.layer.0.up.weight", "net.layer.1.down.weight"])
def test_parts_train(name: str) -> None:
    _, net = _net(LAYERS)
    inputs = [torch.from_numpy(array) for array in layer_inputs().values()]
    net(*inputs).square().mean().backward()
    assert net.get_parameter(name).grad.abs().max() > 0


def _with_scales(role: str, first: str, second: str) -> str:
    scales = "\n".join(
        f'weight @"net.layer.{i}.scale" : f32[1] role={role} = {value}'
        for i, value in enumerate((first, second))
    )
    text = LAYERS.replace('weight @"head.weight"', f'{scales}\nweight @"head.weight"', 1)
    for i in (0, 1):
        text = text.replace(
            f"%r{i} = relu(%a{i})",
            f'%s{i} = weight @"net.layer.{i}.scale"\n  %q{i} = mul(%a{i}, %s{i})\n'
            f"  %r{i} = relu(%q{i})",
        )
    return text


def test_parameters_of_one_element_are_those_of_each_layer() -> None:
    source, net = _net(_with_scales("param", "random(21)", "random(22)"))
    assert "class Layer(Scope)" in source
    assert "self.scale" in source
    assert [p.shape for n, p in net.named_parameters() if n.endswith("scale")] == [(1,), (1,)]


def test_constants_of_one_element_that_differ_keep_layers_apart() -> None:
    source, _ = _net(_with_scales("const", "random(21)", "random(22)"))
    assert "class Layer" not in source


def test_equal_constants_of_one_element_are_numbers() -> None:
    source, _ = _net(_with_scales("const", "random(21)", "random(21)"))
    assert "class Layer(Scope)" in source
    assert "self.scale" not in source


def test_lists_side_by_side_give_each_other_their_matrices() -> None:
    text = LAYERS
    for idx in "01":
        text = text.replace(f"net.layer.{idx}.down.", f"downs.{idx}.").replace(
            f"net.layer.{idx}.up.", f"ups.{idx}."
        )
    _, net = _net(text)
    assert {"ups.0.weight", "downs.1.weight"} <= net.state_dict().keys()


def test_a_parameter_of_one_element_as_a_scalar_is_read_when_it_runs() -> None:
    module = parse_module("""
module "scaled"
weight @scale : f32[1] role=param = random(1)
graph(%x : f32[2, 4]) {
  %s = weight @scale
  %n = reshape(%s) {shape = []}
  %y = mul(%x, %n)
  return %y
}
""")
    net = to_torch(module)
    x = torch.randn(2, 4)
    with torch.no_grad():
        net.scale.fill_(3.0)
    torch.testing.assert_close(net(x), 3 * x)
