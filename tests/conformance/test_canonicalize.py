"""canonicalize on the ONNX node cases and on trained models: same numbers, and idempotent."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.models import CORE, ModelMissingError, RealModel, find, samples
from regraft.backends.onnx import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.constants import opaque
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.verify import verify
from regraft.passes.cleanup import Canonicalize, FoldNorms
from regraft.passes.protocol import Context
from tests.conformance.cases import Case, mismatch, node_cases

Array = np.ndarray[Any, Any]


def _evaluated(module: Module, case: Case) -> list[list[Any]]:
    names = [value.name for value in module.graph.inputs]
    return [
        list(evaluate(module, dict(zip(names, inputs, strict=False))).values())
        for inputs, _ in case.data
    ]


@pytest.mark.slow
def test_node_cases_keep_their_values_and_come_to_rest() -> None:
    broken: list[str] = []
    num = 0
    for case in node_cases():
        module = load_onnx(case.proto)
        if any(node.op is opaque for node in module.graph.walk()):
            continue
        num += 1
        before = _evaluated(module, case)
        Canonicalize().run(module, Context())
        again = Canonicalize().run(module, Context())
        if again.changed:
            broken.append(f"{case.name}: a second run does {again.stats}")
        if problems := verify(module, "full"):
            broken.append(f"{case.name}: {problems[0]}")
        for after, expected in zip(_evaluated(module, case), before, strict=True):
            if reason := mismatch(after, expected, case.rtol, case.atol):
                broken.append(f"{case.name}: {reason}")
    assert broken == []
    assert num > 1500  # the corpus was really there


def _session(model: onnx.ModelProto, *, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("model", CORE, ids=lambda model: str(model.name))
def test_trained_models_keep_their_outputs(model: RealModel) -> None:
    """Tolerance: 1e-5 of the largest output, or 4 times what the runtime's own rewrites change."""
    try:
        path = find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))
    source = onnx.load(path)
    module = load_onnx(path)
    for item in (Canonicalize(), FoldNorms(), Canonicalize()):
        item.run(module, Context())
    for item in (FoldNorms(), Canonicalize()):
        assert not item.run(module, Context()).changed
    assert verify(module, "full") == []
    result = to_proto(module)
    assert len(result.graph.node) <= len(source.graph.node)
    sessions = _session(source), _session(source, optimize=False), _session(result)
    for sample in samples(model):
        runs = [session.run(None, sample) for session in sessions]
        for expected, plain, actual in zip(*runs, strict=True):
            assert np.isfinite(expected).all()
            assert expected.any()
            bound = max(1e-5 * np.abs(expected).max(), 4 * np.abs(plain - expected).max())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)
