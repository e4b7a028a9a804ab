"""Layers of experts of every form become the operator `moe`, with the routing that they have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import regraft
from benchmarks.fixtures import store
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.passes.manager import PassRecord

_F64 = 1e-9
"""Of f64 differences: constants of the files are f32."""


def _fused(module: Module) -> tuple[list[dict[str, Any]], list[PassRecord]]:
    records = regraft.apply(module, "canonicalize,fuse", check="off")
    return [dict(node.attrs) for node in module.graph if node.op.name == "moe"], records


@pytest.mark.parametrize(
    ("name", "scoring", "renormalize"),
    [
        ("mixtral.ts17", "topk_softmax", False),
        ("mixtral.dyn18", "topk_softmax", False),
        ("qwen2_moe.ts17", "softmax", False),
        ("qwen2_moe.dyn18", "softmax", False),
        ("mixtral_positions.dyn23", "topk_softmax", False),
        ("experts_dense.hand", "softmax", False),
        ("experts_gathered.hand", "softmax", False),
    ],
)
def test_onnx_experts_become_the_operator(name: str, scoring: str, renormalize: bool) -> None:
    module = regraft.load(store.load(name))
    sample = store.samples(name)
    before = evaluate(module, sample, oracle=True)
    layers, _ = _fused(module)
    assert layers
    for attrs in layers:
        assert (attrs["scoring"], attrs["renormalize"]) == (scoring, renormalize)
        assert attrs["top_k"] == 2
        assert attrs["routed_scale"] == 1
    assert not any(node.op.name == "top_k" for node in module.graph)
    after = evaluate(module, sample, oracle=True)
    for key, array in before.items():
        np.testing.assert_allclose(after[key], array, rtol=0, atol=_F64 * np.abs(array).max())
