"""Small ONNX models for the tests of bad and odd input, built field by field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32 = TensorProto.FLOAT
I64 = TensorProto.INT64

Sizes = Sequence[int | str | None] | None


def info(name: str, shape: Sizes = ("B", 4), dtype: int = F32) -> onnx.ValueInfoProto:
    """Returns a tensor declaration."""
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str = "w", shape: Sequence[int] = (4, 4), seed: int = 0) -> onnx.TensorProto:
    """Returns an embedded f32 tensor of small random numbers."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def graph(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    initializers: Sequence[onnx.TensorProto] = (),
    value_info: Sequence[onnx.ValueInfoProto] = (),
    sparse: Sequence[onnx.SparseTensorProto] = (),
) -> onnx.GraphProto:
    """Returns a graph from `x: f32[B, 4]` to `y: f32[B, 4]` unless said otherwise."""
    return helper.make_graph(
        nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y")] if outputs is None else outputs,
        initializers,
        value_info=value_info,
        sparse_initializer=sparse,
    )


def model(
    made: onnx.GraphProto,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[tuple[str, int]] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Returns a model; `domains` are further opset imports."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains)]
    return helper.make_model(
        made, opset_imports=imports, ir_version=ir_version, functions=functions
    )


def node(op_type: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    """Returns a node; names are separated by spaces, `_` is an absent one."""
    names = [["" if n == "_" else n for n in part.split()] for part in (inputs, outputs)]
    return helper.make_node(op_type, *names, **attrs)


def linear() -> onnx.ModelProto:
    """Returns `y = relu(x @ w)`, a model with nothing wrong."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "y")]
    return model(graph(nodes, initializers=[weight()]))
