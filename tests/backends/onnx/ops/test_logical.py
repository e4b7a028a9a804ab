"""A choice between truth values, which ONNX Runtime has no kernel for."""

from __future__ import annotations

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops.logical import where
from regraft.ir.types import DType, TensorType
from tests.conformance.cases import run_ort


def test_a_choice_between_truth_values_runs_for_every_combination() -> None:
    graph = Graph()
    type_ = TensorType(DType.BOOL, (Dim.of("N"),))
    values = [graph.add_input(name, type_) for name in ("condition", "x", "y")]
    graph.add_output("out", Builder(graph).op(where, *values))
    module = Module(graph)
    bits = np.arange(8)
    inputs = {name: (bits >> i) % 2 == 1 for i, name in enumerate(("condition", "x", "y"))}
    expected = np.where(*inputs.values())
    assert np.array_equal(evaluate(module, inputs)["out"], expected)
    assert np.array_equal(run_ort(to_proto(module), list(inputs.values()))[0], expected)
