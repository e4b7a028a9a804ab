"""How sizes are written in ONNX: copies, the rest, computed sizes; checked in the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.ops.movement import reshape_target
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike, Symbol, exactdiv
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import blocks, repeating, reshaping, selecting, slicing
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType, TensorType
from tests.conformance.cases import run_ort

B, S = Dim.of("B"), Dim.of("S")
P = Dim.of(Symbol("P", lo=0))


@pytest.mark.parametrize(
    ("x", "shape", "target", "allow_zero"),
    [
        ((B, S, 768), (B, S, 12, 64), (0, 0, 12, 64), False),
        ((B, S, 12, 64), (B * S, 768), (-1, 768), False),
        ((B * S, 768), (B, S, 768), (B, -1, 768), False),  # of two sizes one is computed
        ((B, 8, S), (S, 8 * B), (S, -1), False),  # the plainer one
        ((B, 3), (3, B), (3, -1), False),
        ((2, 6), (3, 4), (3, 4), False),
        ((B, P, 64), (B, P, 8, 8), (0, 0, 8, 8), False),  # a copy of 0 is 0
        ((P, 64), (4, P, 16), (4, -1, 16), False),  # 0 / 64 is 0
        ((P, B, 64), (B, P, 64), (B, -1, 64), False),
        ((P, B, 64), (P * B, 64), (-1, 64), False),
        ((P, 4, B), (4, P, 2, exactdiv(B, 2)), (4, -1, 2, exactdiv(B, 2)), False),
        # next to a size that may be 0 the rest is not decided: all is computed, 0 means 0
        ((P, P, 4), (4, P, P), (4, P, P), True),
        ((0, 4), (0, 9), (0, 9), False),
        ((0, 4), (9, 0), (9, 0), True),
        (None, (B, 4), (-1, 4), False),
        (None, (-1, 4), (-1, 4), False),
    ],
)
def test_reshape_target(x: Any, shape: Any, target: Any, allow_zero: bool) -> None:
    assert reshape_target(x, shape) == (target, allow_zero)


def module_of(spec: OpSpec, x_shape: tuple[DimLike, ...], **attrs: Any) -> Module:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, x_shape))
    graph.add_output("y", Builder(graph).op(spec, x, **attrs))
    return Module(graph)


def check(module: Module, *shapes: tuple[int, ...]) -> onnx.ModelProto:
    """Asserts that the emitted model computes what the module means, at every shape."""
    proto = to_proto(module)
    onnx.checker.check_model(proto)
    for shape in shapes:
        x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) + 1
        (actual,) = run_ort(proto, [x])
        np.testing.assert_array_equal(actual, evaluate(module, {"x": x})["y"])
    return proto


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        ((B, S, 24), (B, S, 4, 6)),
        ((B, S, 24), (B * S, 24)),
        ((B, S, 24), (S, B, 24)),
        ((B, S, 24), (S, 2, B, 12)),
        ((B, S, 24), (S * B * 4, 6)),
        ((B, 24, S), (B, 4, 6 * S)),
    ],
)
def test_symbolic_reshape_runs_at_several_sizes(x: Any, shape: Any) -> None:
    module = module_of(reshaping.reshape, x, shape=shape)
    of = {B: 0, S: 1}
    shapes = [
        tuple(dim if isinstance(dim, int) else (batch, seq)[of[dim]] for dim in x)
        for batch, seq in ((1, 1), (1, 5), (3, 1), (2, 7))
    ]
    proto = check(module, *shapes)
    assert proto.opset_import[0].version == 13


def test_reshape_with_sizes_that_may_be_zero_raises_the_opset() -> None:
    Q = Dim.of(Symbol("Q", lo=0))
    module = module_of(reshaping.reshape, (P, Q, 4), shape=(4, Q, P))
    proto = check(module, (0, 3, 4), (2, 0, 4), (0, 0, 4), (2, 3, 4))
    assert proto.opset_import[0].version == 14
    assert [a.i for a in proto.graph.node[-1].attribute] == [1]


def test_shared_sizes_are_computed_once() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.add_input("x", TensorType(DType.F32, (B, S, 4)))
    first = b.op(repeating.expand, b.op(reshaping.unsqueeze, x, axes=(0,)), shape=(S, B, S, 4))
    second = b.op(repeating.tile, x, repeats=(1, 1, S))
    graph.add_output("y", first)
    graph.add_output("z", second)
    proto = to_proto(Module(graph))
    assert op_types(proto).count("Shape") == 1


def test_expand_computes_only_what_grows() -> None:
    proto = check(module_of(repeating.expand, (B, 1, S), shape=(B, 8, S)), (1, 1, 3), (2, 1, 1))
    assert op_types(proto) == ["Expand"]


@pytest.mark.parametrize(
    ("spec", "x", "attrs"),
    [
        (slicing.slice_, (B, S), {"starts": (0,), "ends": (B,), "axes": (1,), "steps": (1,)}),
        (
            slicing.slice_,
            (B, S),
            {"starts": (-1,), "ends": (-B - 1,), "axes": (1,), "steps": (-1,)},
        ),
        (repeating.tile, (B, S), {"repeats": (S, B)}),
        (repeating.pad, (B, S), {"pads": (0, B, 0, S - 1)}),
        (repeating.pad, (B, S), {"pads": (0, 0, 0, B), "mode": "edge"}),
        (selecting.arg_max, (B, S), {"axis": 1, "select_last_index": True}),
    ],
)
def test_symbolic_parameters_run_at_several_sizes(spec: OpSpec, x: Any, attrs: Any) -> None:
    check(module_of(spec, x, **attrs), (1, 1), (1, 4), (3, 2), (2, 5))


def test_split_of_a_symbolic_axis() -> None:
    for opset, parts in ((13, (S, S)), (18, (S, S)), (18, (1, 2 * S - 1))):
        graph = Graph()
        x = graph.add_input("x", TensorType(DType.F32, (B, 2 * S)))
        graph.scope.symbol("S")
        half = graph.add_input("half", TensorType(DType.F32, (S,)))
        node = Builder(graph).node(slicing.split, x, num_outputs=2, sizes=parts, axis=1)
        graph.add_output("y", node.outputs[0])
        graph.add_output("z", node.outputs[1])
        graph.add_output("h", half)
        proto = to_proto(Module(graph), opset=opset)
        for batch, size in ((1, 1), (2, 3)):
            data = np.arange(batch * 2 * size, dtype=np.float32).reshape(batch, 2 * size)
            first, second, _ = run_ort(proto, [data, np.zeros(size, np.float32)])
            cut = size if parts[0] == S else 1
            np.testing.assert_array_equal(first, data[:, :cut])
            np.testing.assert_array_equal(second, data[:, cut:])


@pytest.mark.parametrize("x", [(2, 3, 4, 6), (B, 3, 2 * S, 6)])
def test_space_to_depth_in_crd_mode_is_written_in_older_operators(x: Any) -> None:
    graph = Graph()
    value = graph.add_input("x", TensorType(DType.F32, x))
    if x[0] == B:
        # the runtime reads S from a value that has it as an axis
        half = graph.add_input("half", TensorType(DType.F32, (S,)))
        graph.add_output("h", half)
    out = Builder(graph).op(blocks.space_to_depth, value, block_size=2, mode="CRD")
    graph.add_output("y", out)
    data = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    inputs = [data] if x[0] == 2 else [data, np.zeros(2, np.float32)]
    actual = run_ort(to_proto(Module(graph)), inputs)[-1]
    blocked = data.reshape(2, 3, 2, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    np.testing.assert_array_equal(actual, blocked)


def test_operators_raise_the_opset_only_where_they_must() -> None:
    for mode, version in (("constant", 13), ("wrap", 19)):
        module = module_of(repeating.pad, (2, 3), pads=(0, 1, 0, 1), mode=mode)
        assert check(module, (2, 3)).opset_import[0].version == version
    module = module_of(blocks.center_crop_pad, (2, 3), shape=(2,), axes=(1,))
    assert check(module, (2, 3)).opset_import[0].version == 18


def test_pads_of_some_axes_survive_the_runtime_moving_transpositions() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (B, 4, 5, 3)))
    b = Builder(graph)
    moved = b.op(reshaping.transpose, x, perm=(0, 3, 1, 2))
    padded = b.op(repeating.pad, moved, pads=(1, 0, 2, 1), axes=(2, -1))
    graph.add_output("out", b.op(reshaping.transpose, padded, perm=(0, 2, 3, 1)))
    module = Module(graph)
    array = np.arange(120, dtype=np.float32).reshape(2, 4, 5, 3)
    expected = np.pad(array, ((0, 0), (1, 2), (0, 1), (0, 0)))
    assert np.array_equal(run_ort(to_proto(module), [array])[0], expected)
