"""Which tensors a generated module registers, and under which names."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.builder import Builder
from regraft.ir.derive import DerivedWeight
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.arithmetic import add, mul
from regraft.ir.ops.linalg import matmul
from regraft.ir.steps import Concat, Gather, Mul, Reshape, Slice, Source, Transpose, Tree
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role
from tests.backends.torch.models import assert_same_outputs, torch

from regraft.backends.torch import read_back, source_of, to_torch  # isort: skip  # needs torch
from regraft.backends.torch.executor import TorchRunner  # isort: skip
from regraft.backends.torch.weight_plan import WeightPlan  # isort: skip


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _product_of(*trees: Tree) -> Module:
    """Returns the sum of products of an input with derived matrices f32[4, N]."""
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (Dim.of(graph.scope.symbol("B")), 4)))
    b = Builder(graph)
    for idx, tree in enumerate(trees):
        w = b.weight(f"derived.{idx}", DerivedWeight(tree), Role.PARAM)
        graph.add_output(f"y{idx}", b.op(matmul, x, w))
    return Module(graph)


def _check(module: Module, names: dict[str, tuple[int, ...]]) -> None:
    net = to_torch(module)
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == names
    inputs = {"x": _array(3, 4, seed=9)}
    assert_same_outputs(module, TorchRunner(net, module)(inputs), inputs)


def test_transposed_weight_registers_its_source() -> None:
    source = Source("fc.weight", ArrayWeight(_array(5, 4)))
    module = _product_of(Transpose(source, (1, 0)))
    _check(module, {"fc.weight": (5, 4)})
    assert "F.linear(x, self.fc.weight)" in source_of(to_torch(module))


def test_reshaped_and_joined_weights_register_their_sources() -> None:
    q, k = (Source(f"{name}.weight", ArrayWeight(_array(4, 2, 3))) for name in "qk")
    joined = Concat((Reshape(q, (4, 6)), Reshape(k, (4, 6))), 1)
    _check(_product_of(joined), {"q.weight": (4, 2, 3), "k.weight": (4, 2, 3)})


def test_slices_that_cover_a_weight_register_it() -> None:
    qkv = Source("qkv.weight", ArrayWeight(_array(4, 9)))
    parts = [Slice(qkv, 1, start, start + 3) for start in (0, 3, 6)]
    _check(_product_of(*parts), {"qkv.weight": (4, 9)})


def test_pruned_weight_is_small_and_keeps_its_name() -> None:
    source = Source("fc.weight", ArrayWeight(_array(7, 4)))
    pruned = Transpose(Gather(source, 0, (0, 2, 5)), (1, 0))
    _check(_product_of(pruned), {"fc.weight": (3, 4)})


def test_computed_weight_is_stored_under_its_origin() -> None:
    conv = Source("conv.weight", ArrayWeight(_array(4, 3)))
    scale = Source("norm.weight", ArrayWeight(_array(3)))
    _check(_product_of(Mul(conv, scale)), {"conv.weight": (4, 3)})


def test_two_different_parts_of_one_weight_get_two_names() -> None:
    source = Source("fc.weight", ArrayWeight(_array(4, 9)))
    parts = (Gather(source, 1, (0, 2)), Gather(source, 1, (1, 3, 4)))
    _check(_product_of(*parts), {"fc.weight": (4, 2), "derived.1": (4, 3)})


def test_name_below_that_of_a_tensor_is_flat() -> None:
    names = ("conv.w", "conv.w.scaled", "conv")
    trees = [Source(name, ArrayWeight(_array(4, 3, seed=i))) for i, name in enumerate(names)]
    _check(_product_of(*trees), {"conv.w": (4, 3), "conv_w_scaled": (4, 3), "conv_1": (4, 3)})


def test_tied_names_stay_tied() -> None:
    module = _product_of(Source("embed.weight", ArrayWeight(_array(4, 3))))
    module.weights.aliases["head.weight"] = "derived.0"
    net = to_torch(module)
    assert set(net.state_dict()) == {"embed.weight", "head.weight"}
    assert net.embed.weight is net.head.weight
    assert len(list(net.parameters())) == 1


def test_names_that_no_attribute_can_have_are_reached() -> None:
    trees = [
        Source(name, ArrayWeight(_array(4, 3, seed=i)))
        for i, name in enumerate(("0.weight", "blocks.a-b.weight", "list.2", "lambda.weight"))
    ]
    module = _product_of(*trees)
    _check(module, {tree.name: (4, 3) for tree in trees})


def test_names_of_exporters_become_attributes_and_are_read_back() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 4)))
    b = Builder(graph, loc=("onnx:MatMul_12",))
    w = b.weight("onnx::MatMul_12", ArrayWeight(_array(4, 3)), Role.PARAM)
    graph.add_output("y", b.op(matmul, x, w))
    module = Module(graph)
    net = to_torch(module)
    assert set(net.state_dict()) == {"onnx_MatMul_12"}
    with torch.no_grad():
        net.onnx_MatMul_12.add_(1)
    assert read_back(module, net) == ["onnx::MatMul_12"]
    np.testing.assert_array_equal(module.weights["onnx::MatMul_12"].numpy(), _array(4, 3) + 1)


def test_numbered_matrix_of_a_linear_layer_gets_its_name_and_layout_again() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 4)))
    b = Builder(graph)
    w = b.weight("onnx::MatMul_12", ArrayWeight(_array(4, 3)), Role.PARAM)
    bias = b.weight("encoder.query.bias", ArrayWeight(_array(3)), Role.PARAM)
    graph.add_output("y", b.op(add, b.op(matmul, x, w), bias))
    module = Module(graph)
    net = to_torch(module)
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    assert shapes == {"encoder.query.weight": (3, 4), "encoder.query.bias": (3,)}
    assert "F.linear(x, self.encoder.query.weight, self.encoder.query.bias)" in source_of(net)
    with torch.no_grad():
        net.encoder.query.weight.mul_(2)
    assert read_back(module, net) == ["onnx::MatMul_12"]
    np.testing.assert_array_equal(module.weights["onnx::MatMul_12"].numpy(), _array(4, 3) * 2)


@pytest.mark.parametrize("size", [4, 100])
def test_constants_move_with_the_module_and_are_no_state(size: int) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, size)))
    b = Builder(graph)
    y = b.op(mul, x, b.constant(_array(size)))
    graph.add_output("y", y)
    module = Module(graph)
    net = to_torch(module)
    assert not net.state_dict()
    inputs = {"x": _array(2, size, seed=3)}
    assert_same_outputs(module, TorchRunner(net, module)(inputs), inputs)
    wide = net.double()
    assert wide(torch.zeros(2, size, dtype=torch.float64)).dtype == torch.float64


def test_a_name_that_modules_have_themselves_is_numbered() -> None:
    plan = WeightPlan()
    assert [plan.reserve(name) for name in ("to", "encoder.to", "table")] == [
        "to_1", "encoder_to", "table",
    ]  # fmt: skip
