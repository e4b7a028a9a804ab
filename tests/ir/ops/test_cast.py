"""Casts: oracle precision, bit casts, saved files of every element type."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.builder import Builder
from regraft.ir.constants import opaque
from regraft.ir.errors import TypeInferenceError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.cast import bitcast, cast
from regraft.ir.types import DType, TensorType
from tests.conformance.cases import mismatch, run_ort


def cast_module(source: DType, *targets: DType, **attrs: Any) -> Module:
    """Returns a module that casts `x` to each type in turn."""
    graph = Graph()
    b = Builder(graph)
    value = graph.add_input("x", TensorType(source, (4,)))
    for to in targets:
        value = b.op(cast, value, to=to, **attrs)
    graph.add_output("y", value)
    return Module(graph)


X = np.array([0.1, 1.5, -3.0, 7.0], np.float32)


def test_an_oracle_keeps_precision_but_not_quantization() -> None:
    through_half = cast_module(DType.F32, DType.F16, DType.F32)
    assert evaluate(through_half, {"x": X})["y"][0] == np.float32(np.float16(0.1))
    assert evaluate(through_half, {"x": X}, oracle=True)["y"][0] == np.float64(np.float32(0.1))
    through_byte = cast_module(DType.F32, DType.F8E4M3FN, DType.F32)
    assert evaluate(through_byte, {"x": X}, oracle=True)["y"][0] == 0.1015625


@pytest.mark.parametrize(
    ("target", "opset"),
    [
        (DType.F16, 13),
        (DType.BF16, 13),
        (DType.F8E4M3FN, 19),
        (DType.F8E5M2FNUZ, 19),
        (DType.I4, 21),
        (DType.I8, 13),
        (DType.BOOL, 13),
    ],
)
def test_saved_casts_agree_and_raise_the_opset_when_needed(target: DType, opset: int) -> None:
    # whole numbers: ONNX Runtime rounds to 4-bit integers where the reference truncates
    x = X if target.is_float else np.array([0, 1, -3, 7], np.float32)
    module = cast_module(DType.F32, target, DType.F32)
    proto = to_proto(module)
    assert proto.opset_import[0].version == opset
    assert mismatch(run_ort(proto, [x]), [evaluate(module, {"x": x})["y"]], 0, 0) == ""


def test_cast_attributes_are_written_for_the_types_that_have_them() -> None:
    module = cast_module(DType.F32, DType.F8E8M0, round_mode="nearest", saturate=False)
    (node,) = to_proto(module).graph.node
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert values == {"to": TensorProto.FLOAT8E8M0, "round_mode": b"nearest", "saturate": 0}
    (plain,) = to_proto(cast_module(DType.F32, DType.F16)).graph.node
    assert [item.name for item in plain.attribute] == ["to"]


@pytest.mark.parametrize(
    ("source", "target", "values", "expected"),
    [
        (DType.F32, DType.I32, [1.0, -2.0], [0x3F800000, -0x40000000]),
        (DType.U4, DType.I4, [15, 7], [-1, 7]),
        (DType.I4, DType.U4, [-1, 7], [15, 7]),
        (DType.U4, DType.F4E2M1, [2, 15], [1.0, -6.0]),
        (DType.BF16, DType.U16, [1.0, -1.0], [0x3F80, 0xBF80]),
    ],
)
@pytest.mark.parametrize("oracle", [False, True])
def test_bitcast_keeps_the_bits(
    source: DType, target: DType, values: list[float], expected: list[float], oracle: bool
) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(source, (2,)))
    graph.add_output("y", Builder(graph).op(bitcast, x, to=target))
    given = {"x": np.array(values).astype(source.numpy)}
    result = evaluate(Module(graph), given, oracle=oracle)["y"]
    assert result.astype(np.float64).tolist() == expected


def test_bitcast_to_another_width_is_refused() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    with pytest.raises(TypeInferenceError, match="f32 has 32 bits, i64 has 64"):
        Builder(graph).op(bitcast, x, to=DType.I64)


def like_model(with_type: bool) -> onnx.ModelProto:
    like = helper.make_tensor_value_info("like", TensorProto.INT64, [1])
    node = helper.make_node("CastLike", ["x", "t"], ["y"])
    # the result of an operator without a spec has no known type
    source = helper.make_node("Identity" if with_type else "Mystery", ["like"], ["t"])
    source.domain = "" if with_type else "test"
    graph = helper.make_graph(
        [source, node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]), like],
        [onnx.ValueInfoProto(name="y")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("test", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_cast_like_is_a_cast_when_the_type_is_known() -> None:
    module = load_onnx(like_model(with_type=True))
    assert [node.op.name for node in module.graph] == ["identity", "cast"]
    assert module.graph.outputs[0].dtype is DType.I64


def test_cast_like_of_an_unknown_type_stays_opaque() -> None:
    module = load_onnx(like_model(with_type=False))
    assert [node.op for node in module.graph] == [opaque, opaque]
