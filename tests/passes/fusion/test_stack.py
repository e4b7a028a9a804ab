"""A stack of spelled-out blocks ends at the operators that it consists of, in every profile."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest

from benchmarks.blocks import stack
from regraft.backends.onnx.save import to_proto
from regraft.frontends.onnx import load_onnx
from regraft.ir.module import Module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context

BLOCKS = 3


@pytest.fixture(scope="module")
def fused() -> Module:
    module = load_onnx(stack(BLOCKS))
    Canonicalize().run(module, Context())
    Fuse().run(module, Context())
    return module


@pytest.mark.parametrize(
    ("profile", "opset", "nodes_per_block"),
    [
        ("onnx", None, 12),  # opset 17 has no Gelu: five operators
        ("onnx", 20, 8),
        ("ort-cpu", None, 8),
        ("ort-cpu", 20, 8),
        ("onnx", 13, 26),  # nor LayerNormalization
    ],
)
def test_nodes_per_block(
    fused: Module, profile: str, opset: int | None, nodes_per_block: int
) -> None:
    model = to_proto(fused, profile=profile, opset=opset)
    assert model.opset_import[0].version == (opset or 17)
    assert len(model.graph.node) == nodes_per_block * BLOCKS
    if profile == "onnx":
        assert [item.domain for item in model.opset_import] == [""]


@pytest.mark.parametrize("profile", ["onnx", "ort-cpu"])
@pytest.mark.parametrize("opset", [None, 20, 23])
def test_runs_equal(fused: Module, profile: str, opset: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs = [
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ).run(None, {"x": x})[0]
        for model in (stack(BLOCKS), to_proto(fused, profile=profile, opset=opset))
    ]
    # a few roundings of f32 per operator, 24 operators deep
    bound = 24 * 4 * np.finfo(np.float32).eps * np.abs(outputs[0]).max()
    assert np.abs(outputs[0] - outputs[1]).max() <= bound


def test_one_operator_per_place(fused: Module) -> None:
    counts = Counter(node.op.name for node in fused.graph)
    assert (counts["layer_norm"], counts["gelu"]) == (2 * BLOCKS, BLOCKS)
    assert not {"erf", "reduce_mean", "sqrt"} & set(counts)
