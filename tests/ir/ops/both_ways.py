"""An operator computed by its `eval`, by its body, and by ONNX Runtime on what is emitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.opspec import OpSpec
from regraft.ir.types import TensorType, dtype_of
from tests.conformance.cases import run_ort

Array = np.ndarray[Any, Any]


def computed(
    spec: OpSpec,
    operands: Sequence[Array | None],
    *,
    opset: int = 23,
    symbolic: bool = False,
    **attrs: Any,
) -> list[Array]:
    """Returns the results of `eval` after asserting that body and emitted model give the same.

    Args:
        spec: An operator with a body.
        operands: Arrays by slot, None where absent.
        opset: Emission opset.
        symbolic: Whether the first axis of every operand is the symbol `B` (1 stays 1).
        attrs: Its attributes.
    """
    module = Module(Graph())
    graph, values = module.graph, []
    for i, array in enumerate(operands):
        if array is None:
            values.append(None)
            continue
        shape: list[int | Dim] = list(array.shape)
        if symbolic and shape and shape[0] == 2:
            shape[0] = Dim.of(graph.scope.symbol("B"))
        values.append(graph.add_input(f"x{i}", TensorType(dtype_of(array), tuple(shape))))
    node = graph.create(spec, values, attrs)
    assert spec.body is not None
    built = spec.body(node, Builder(graph))
    bodies = [built] if isinstance(built, Value) else list(built)
    for i, (own, other) in enumerate(zip(node.outputs, bodies, strict=True)):
        assert own.type == other.type
        graph.add_output(f"own{i}", own)
        graph.add_output(f"body{i}", other)
    feeds = {f"x{i}": array for i, array in enumerate(operands) if array is not None}
    results = list(evaluate(module, feeds).values())
    emitted = run_ort(to_proto(module, opset=opset), list(feeds.values()))
    for i, name in enumerate(graph.output_names):
        expected = results[i - i % 2]
        # every variant sums the same few terms in another order
        tolerance = (
            64 * float(np.finfo(expected.dtype).eps) * max(1.0, float(np.abs(expected).max()))
        )
        np.testing.assert_allclose(results[i], expected, 0, tolerance, err_msg=f"evaluated {name}")
        np.testing.assert_allclose(emitted[i], expected, 0, tolerance, err_msg=f"emitted {name}")
    return results[::2]
