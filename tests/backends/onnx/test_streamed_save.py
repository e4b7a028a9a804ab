"""A model with its weights inside, written weight by weight, is the model that is held whole."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import regraft
from regraft.backends.onnx import save_onnx, to_proto
from regraft.backends.onnx.storage import Streamed


@pytest.fixture
def module(tmp_path):
    """Returns a module with a small and two large weights, one of them within a branch."""
    rng = np.random.default_rng(0)
    large, other = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "inner"], ["b"])], "then", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(other, "inner")],
    )  # fmt: skip
    stay = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["c"])], "else", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["m"]),
        helper.make_node("Add", ["m", "small"], ["h"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=stay),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 200]),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 200])],
        [
            numpy_helper.from_array(large, "large"),
            numpy_helper.from_array(np.arange(200, dtype=np.float32), "small"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "in.onnx")
    return regraft.load(tmp_path / "in.onnx")


def test_the_file_is_the_model(module, tmp_path):
    assert save_onnx(module, tmp_path / "out.onnx") == [tmp_path / "out.onnx"]
    written = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert written == to_proto(module)


def test_large_weights_are_not_held_in_the_model(module):
    proto = to_proto(module, storage=Streamed())
    sizes = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    assert sizes == {"large": 0, "small": 800}
