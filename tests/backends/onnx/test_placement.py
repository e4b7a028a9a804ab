from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx


def _branch(name: str, weight: str) -> onnx.GraphProto:
    node = helper.make_node("Mul", ["x", weight], [f"{name}_out"])
    out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 400])
    return helper.make_graph([node], name, [], [out])


def _model(then_weight: np.ndarray, else_weight: np.ndarray, *, in_main: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            "If", ["c"], ["y"], then_branch=_branch("a", "wa"), else_branch=_branch("b", "wb")
        )
    ]
    if in_main:
        nodes.append(helper.make_node("Add", ["x", "wa"], ["z"]))
    outputs = ["y", "z"] if in_main else ["y"]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 400]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 400]) for n in outputs],
        [numpy_helper.from_array(w, n) for n, w in (("wa", then_weight), ("wb", else_weight))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _initializers(model: onnx.ModelProto) -> dict[str, list[str]]:
    found = {"main": [i.name for i in model.graph.initializer]}
    for node in model.graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                found[attr.name] = [i.name for i in attr.g.initializer]
    return found


ONE, TWO = (np.full(400, value, np.float32) for value in (1.5, 2.5))


def test_weights_of_one_branch_stand_in_it() -> None:
    emitted = to_proto(load_onnx(_model(ONE, TWO, in_main=False)))
    assert _initializers(emitted) == {"main": [], "then_branch": ["wa"], "else_branch": ["wb"]}
    inputs = {"c": np.array(False), "x": np.ones((2, 400), np.float32)}
    assert OrtRunner(emitted)(inputs)["y"][0, 0] == 2.5


def test_a_weight_of_branch_and_main_graph_stands_in_the_main_graph() -> None:
    emitted = to_proto(load_onnx(_model(ONE, TWO, in_main=True)))
    assert _initializers(emitted) == {"main": ["wa"], "then_branch": [], "else_branch": ["wb"]}


def test_equal_weights_of_two_branches_are_one_in_the_main_graph() -> None:
    emitted = to_proto(load_onnx(_model(ONE, ONE.copy(), in_main=False)))
    found = _initializers(emitted)
    assert len(found["main"]) == 1
    assert found["then_branch"] == found["else_branch"] == []
    inputs = {"c": np.array(True), "x": np.ones((2, 400), np.float32)}
    assert OrtRunner(emitted)(inputs)["y"][0, 0] == 1.5
