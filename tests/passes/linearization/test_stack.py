"""Hybrid stacks: the solver keeps the softmax where the outputs need it, within the budget."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import regraft
from regraft.ir.builder import Builder
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, attention, linalg
from regraft.ir.types import DType, TensorType

H, T, D, LAYERS = 2, 16, 4, 4
SHARPNESS = (8.0, 0.1, 4.0, 0.2)
"""Scale of the scores of every layer: near uniform weights are linear already."""


def _stack() -> Module:
    rng = np.random.default_rng(4)
    module = Module(Graph())
    graph, b = module.graph, Builder(module.graph)
    x = graph.add_input("x", TensorType(DType.F32, (1, H, T, D)))
    for sharpness in SHARPNESS:
        q, k = (
            b.op(linalg.matmul, x, b.constant(rng.standard_normal((D, D)), x.dtype)) for _ in "qk"
        )
        made = b.op(attention.attention, q, k, x, scale=sharpness, causal_offset=0)
        x = b.op(arithmetic.add, x, made)
    graph.add_output("y", x)
    return module


def _samples() -> list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((1, H, T, D)).astype(np.float32)} for _ in range(2)]


def _error(made: Module) -> float:
    total = 0.0
    for sample in _samples():
        wanted, found = (evaluate(each, sample)["y"] for each in (_stack(), made))
        total += float(np.square(found - wanted).sum() / np.square(wanted).sum())
    return total


def _linear(layers: tuple[int, ...]) -> Module:
    made = _stack()
    numbers = ",".join(map(str, layers))
    regraft.apply(made, f"linearize-attention{{method=elu,layers=[{numbers}]}}", check="off")
    return made


def test_the_choice_is_within_the_budget_and_the_best_of_its_size() -> None:
    made = _stack()
    (record,) = regraft.apply(
        made, "linearize-attention{method=elu,cache=0.6,tokens=512}", check="off",
        samples=_samples(),
    )  # fmt: skip
    linear = tuple(record.decisions["linear"])
    assert record.stats["cache-bytes"] <= 0.6 * record.stats["cache-bytes-before"]
    assert len(linear) == 2
    errors = [each["error"] for each in record.decisions["layers"]]
    pairs = list(combinations(range(LAYERS), 2))
    assert linear == min(pairs, key=lambda pair: sum(errors[i] for i in pair))
    ranked = sorted(pairs, key=lambda pair: _error(_linear(pair)))
    assert linear in ranked[:2]  # what layers cost alone is nearly what they cost together
    kinds = [node.op.name == "linear_attention" for node in made.graph if _mixes(node.op.name)]
    assert kinds == [layer in linear for layer in range(LAYERS)]


def _mixes(name: str) -> bool:
    return name in ("attention", "linear_attention")


def test_what_is_measured_is_kept() -> None:
    made = _stack()
    (record,) = regraft.apply(
        made, "linearize-attention{method=elu,cache=0.6,tokens=512}", check="off",
        samples=_samples(),
    )  # fmt: skip
    layers = record.decisions["layers"]
    assert [each["number"] for each in layers] == list(range(LAYERS))
    for each in layers:
        assert each["error"] == pytest.approx(each["kl"] * each["sensitivity"])
        assert each["cache_bytes"] == 4 * 512 * H * 2 * D
        assert each["state_bytes"] == 4 * H * D * (D + 1)


def test_a_budget_below_all_states_is_refused() -> None:
    with pytest.raises(TargetError):
        regraft.apply(
            _stack(), "linearize-attention{method=elu,cache=0.0001}", check="off",
            samples=_samples(),
        )  # fmt: skip


def test_a_budget_needs_data() -> None:
    with pytest.raises(UsageError, match="there is no data"):
        regraft.apply(_stack(), "linearize-attention{cache=0.5}", check="off")
