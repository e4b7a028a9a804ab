"""Models of one ONNX node, and the check that every way of computing them agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.dims import Dim, bind
from regraft.ir.evaluate import bind_inputs, evaluate
from regraft.ir.module import Module
from tests.conformance.cases import mismatch, run_ort

Array = np.ndarray[Any, Any]


def single_node(
    op_type: str,
    opset: int,
    operands: list[Array | None],
    *,
    constant: tuple[int, ...] = (),
    symbolic: bool = False,
    num_outputs: int = 1,
    domain: str = "",
    **attrs: Any,
) -> onnx.ModelProto:
    """Returns a model of one node.

    Args:
        op_type: ONNX operator.
        opset: Opset of ai.onnx.
        operands: Sample operands; None is absent.
        constant: Positions of operands that are initializers.
        symbolic: Whether the sizes of inputs are dim parameters instead of numbers.
        num_outputs: Number of results.
        domain: Domain of the operator.
        attrs: ONNX attributes.
    """
    names, inputs, initializers = [], [], []
    for i, array in enumerate(operands):
        names.append("" if array is None else f"x{i}")
        if array is None:
            continue
        if i in constant:
            initializers.append(numpy_helper.from_array(array, f"x{i}"))
            continue
        dims = [f"d{i}_{a}" if symbolic else n for a, n in enumerate(array.shape)]
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(f"x{i}", dtype, dims))
    results = [f"y{i}" for i in range(num_outputs)]
    node = helper.make_node(op_type, names, results, domain=domain, **attrs)
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def check_agreement(
    proto: onnx.ModelProto,
    operands: list[Array | None],
    *,
    rtol: float,
    constant: tuple[int, ...] = (),
    expected: list[Array] | None = None,
) -> Module:
    """Asserts that all ways to compute a model agree, and that inferred types are what comes out.

    The source in ONNX Runtime (or `expected`), both emitted profiles, and the evaluator.

    Returns:
        The module.
    """
    inputs = [x for i, x in enumerate(operands) if x is not None and i not in constant]
    if expected is None:
        expected = run_ort(proto, inputs)
    # absolute terms scale with the values: sums may cancel
    atol = rtol * max(1.0, *(float(np.abs(x.astype(np.float64)).max(initial=0)) for x in expected))
    module = load_onnx(proto)
    assert all(node.op is not opaque for node in module.graph.walk())
    for profile in ("onnx", "ort-cpu"):
        emitted = run_ort(to_proto(module, profile=profile), inputs)
        assert mismatch(emitted, expected, rtol, atol) == "", f"emitted for {profile}"
    values = dict(zip((str(v.name) for v in module.graph.inputs), inputs, strict=True))
    check_types(module, values)
    assert mismatch(evaluate(module, values).values(), expected, rtol, atol) == "", "evaluated"
    exact = evaluate(module, values, oracle=True).values()
    rounded = [x.astype(e.dtype) for x, e in zip(exact, expected, strict=True)]
    assert mismatch(rounded, expected, rtol, atol) == "", "evaluated in f64"
    return module


def check_types(module: Module, values: dict[str, Array]) -> None:
    """Asserts that every value has the inferred element type, and shape as far as it is decided."""
    env = bind_inputs(module.graph, values)

    def observe(value: Any, array: Any) -> None:
        if not isinstance(array, np.ndarray) or value.shape is None:
            return
        shape = tuple(bind(dim, env) for dim in value.shape)
        assert len(shape) == array.ndim, f"{value!r} is {array.shape}"
        for dim, size in zip(shape, array.shape, strict=True):
            assert isinstance(dim, Dim) or dim == size, f"{value!r} is {array.shape}"

    evaluate(module, values, observe=observe)
