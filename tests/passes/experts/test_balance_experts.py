"""The pass `balance-experts`: even loads, the same experts and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.audit import expert_figures
from regraft.passes.experts.balance_experts import BalanceExperts
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context, PassResult
from tests.passes.experts.test_upcycle_ffn import block

SAMPLES = [
    {"x": (1 + np.random.default_rng(seed).standard_normal((2, 100, 16))).astype(np.float32)}
    for seed in range(4)
]
CTX = Context(samples=SAMPLES, activations=OrtActivations())


def _skewed(**options: Any) -> Module:
    module = block("swiglu")
    given = {"experts": 4, "top_k": 1, "method": "drop", "router_std": 0.2, "lossy": True}
    UpcycleFfn(**(given | options)).run(module, Context())
    return module


def _balanced(module: Module, **options: Any) -> PassResult:
    result = BalanceExperts(**options).run(module, CTX)
    verify(module)
    return result


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "topk_softmax"])
def test_loads_are_even_afterwards_and_experts_as_they_were(scoring: str) -> None:
    module = _skewed(scoring=scoring)
    (before,), _ = expert_figures(module, SAMPLES, OrtActivations())
    result = _balanced(module, rate=0.005, steps=600)
    (after,), _ = expert_figures(module, SAMPLES, OrtActivations())
    assert before.worst_load > 1.5
    assert after.worst_load <= 1.2
    assert result.stats["worst-load"] == pytest.approx(after.worst_load, rel=0.05)
    assert after.weight_cosine == before.weight_cosine
    assert after.norms == pytest.approx(before.norms)
    assert after.chosen == before.chosen


def test_a_bias_that_is_there_is_where_it_begins() -> None:
    module = _skewed()
    _balanced(module, rate=0.005, steps=600)
    (name,) = (name for name in module.weights if name.endswith("score_bias"))
    first = module.weights[name].numpy().copy()
    _balanced(module, rate=0.0, steps=1)
    (name,) = (name for name in module.weights if "score_bias" in name)
    np.testing.assert_array_equal(module.weights[name].numpy(), first)
    module.weights.set(name, ArrayWeight(first))


def test_layers_without_a_choice_are_left_alone() -> None:
    result = _balanced(_skewed(experts=2, top_k=2))
    assert not result.changed
    assert "every expert" in result.skipped[0].reason
    with pytest.raises(UsageError, match="`steps`"):
        _balanced(_skewed(), steps=0)
