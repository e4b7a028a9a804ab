"""Compares ONNX Runtime on a model, ONNX Runtime on what we save of it, and the evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from regraft.api import apply
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.tensors import ONNX_DTYPES
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.types import dtype_of
from regraft.ir.verify import check
from tests.conformance.cases import mismatch, run_ort

Inputs = Mapping[str, Any]


def single(
    op_type: str,
    inputs: Mapping[str, Any],
    num_outputs: int,
    opset: int,
    *,
    domain: str = "",
    constants: Sequence[str] = (),
    output_dtypes: Sequence[int] = (),
    **attrs: Any,
) -> onnx.ModelProto:
    """Returns a model of one node; None inputs are absent, those named in `constants` stored.

    Args:
        op_type: ONNX operator.
        inputs: Arrays in operand order; they give the input types.
        num_outputs: Number of outputs `y0, y1, …`.
        opset: Opset version of ai.onnx.
        domain: Domain of the operator.
        constants: Names of inputs that become initializers.
        output_dtypes: ONNX element types of the outputs; default: the first input's.
        attrs: Attributes.
    """
    outputs = [f"y{i}" for i in range(num_outputs)]
    names = ["" if value is None else name for name, value in inputs.items()]
    node = helper.make_node(op_type, names, outputs, domain=domain, **attrs)
    present = {name: value for name, value in inputs.items() if value is not None}
    first = ONNX_DTYPES[dtype_of(next(iter(present.values())))]
    graph = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(name, ONNX_DTYPES[dtype_of(x)], x.shape)
            for name, x in present.items()
            if name not in constants
        ],
        [
            helper.make_tensor_value_info(name, output_dtypes[i] if output_dtypes else first, None)
            for i, name in enumerate(outputs)
        ],
        [onnx.numpy_helper.from_array(present[name], name) for name in constants],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = 10
    return model


def assert_agree(
    model: onnx.ModelProto, inputs: Inputs, *, rtol: float, atol: float, opaque_ok: bool = False
) -> list[Any]:
    """Asserts that source, saved model and evaluator agree; returns ONNX Runtime's outputs."""
    names = [item.name for item in model.graph.input]
    values = [inputs[name] for name in names]
    expected = run_ort(model, values)
    assert any(np.asarray(e).size and np.any(np.asarray(e) != 0) for e in expected), "all zero"
    module = load_onnx(model)
    kinds = [node.attrs["op_type"] for node in module.graph.walk() if node.op is opaque]
    assert opaque_ok or not kinds, f"opaque: {kinds}"
    assert not mismatch(run_ort(to_proto(module), values), expected, rtol, atol), "saved model"
    if not kinds:
        actual = evaluate(module, dict(zip(names, values, strict=True))).values()
        assert (reason := mismatch(actual, expected, rtol, atol)) == "", f"evaluator: {reason}"
    return expected


def assert_rewrite_agrees(
    model: onnx.ModelProto,
    *samples: Inputs,
    passes: str = "canonicalize,fold-norms,canonicalize",
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Module:
    """Asserts that the model, rewritten and saved for every profile, agrees on every sample."""
    names = [item.name for item in model.graph.input]
    module = load_onnx(model)
    check(module, "full")
    apply(module, passes, check="off")
    for profile in ("onnx", "ort-cpu"):
        saved = to_proto(module, profile=profile)
        for inputs in samples:
            values = [inputs[name] for name in names]
            expected, actual = run_ort(model, values), run_ort(saved, values)
            assert (reason := mismatch(actual, expected, rtol, atol)) == "", f"{profile}: {reason}"
    return module
