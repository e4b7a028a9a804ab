"""Nodes that the definition of their operator does not allow: which later one does."""

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from regraft.frontends.onnx import load_onnx
from regraft.ir.errors import InputError


def model(op_type: str, dtype: int, opset: int) -> onnx.ModelProto:
    x, other = (helper.make_tensor_value_info(name, dtype, ["N"]) for name in "xz")
    y = helper.make_tensor_value_info("y", dtype, ["N"])
    graph = helper.make_graph([helper.make_node(op_type, ["x", "z"], ["y"])], "g", [x, other], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("op_type", "dtype", "opset", "lowest"),
    [
        # what PyTorch's exporter makes of the buckets of T5's relative positions
        ("Min", TensorProto.INT64, 11, "opset 12 "),
        ("Min", TensorProto.INT64, 7, "opset 12 "),
        ("Min", TensorProto.BOOL, 11, "the definition of the operator does not allow it"),
    ],
)
def test_a_type_that_a_later_opset_allows_names_it(op_type, dtype, opset, lowest):
    proto = model(op_type, dtype, opset)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph):
        onnxruntime.InferenceSession(proto.SerializeToString())
    with pytest.raises(InputError) as caught:
        load_onnx(proto)
    assert f"{op_type} of opset {opset}" in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(lowest)


def test_the_opset_that_is_named_takes_the_node():
    assert len(list(load_onnx(model("Min", TensorProto.INT64, 12)).graph)) == 1
