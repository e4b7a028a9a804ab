"""Stacks by head: some heads of a layer linear, the others a softmax, by the budget solver."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.auditing import audit_module
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, attention, linalg, rotary
from regraft.ir.types import DType, TensorType
from regraft.passes.linearization.audit import mixers
from regraft.passes.linearization.linearize_attention import LinearizeAttention
from regraft.passes.protocol import Context
from tests.passes.linearization.language_model import VOCABULARY as V
from tests.passes.linearization.language_model import language_model

Array = np.ndarray[Any, Any]

K, G, T, D = 4, 2, 12, 8
SHARPNESS = (6.0, 0.05, 3.0, 0.1)
"""Scale of the keys of every key head: near uniform weights are linear already."""


def _attention(*, turned: bool = False, causal: bool = True) -> Module:
    module = Module(Graph())
    graph, b = module.graph, Builder(module.graph)
    q = graph.add_input("q", TensorType(DType.F32, (1, K * G, T, D)))
    k, v = (graph.add_input(name, TensorType(DType.F32, (1, K, T, D))) for name in "kv")
    sharp = b.constant(np.array(SHARPNESS, np.float32).reshape(1, K, 1, 1))
    keys = b.op(arithmetic.mul, k, sharp)
    queries = q
    if turned:
        angles = np.outer(np.arange(T), 0.3 ** np.arange(D // 2)).astype(np.float32)
        tables = [b.constant(f(angles)) for f in (np.cos, np.sin)]
        queries, keys = (b.op(rotary.rotary_embedding, x, *tables, None) for x in (queries, keys))
    offset = 0 if causal else None
    y = b.op(attention.attention, queries, keys, v, scale=0.5, kv_groups=G, causal_offset=offset)
    mixing = np.random.default_rng(3).standard_normal((D, D)).astype(np.float32)
    graph.add_output("heads", y)
    graph.add_output("y", b.op(linalg.matmul, y, b.constant(mixing)))
    return module


def _samples() -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    shapes = {"q": (1, K * G, T, D), "k": (1, K, T, D), "v": (1, K, T, D)}
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    ]


def _applied(module: Module, options: str) -> Any:
    (record,) = regraft.apply(
        module, f"linearize-attention{{{options}}}", check="off", samples=_samples()
    )
    return record


def _replayed(module: Module, item: LinearizeAttention, heads: tuple[int, ...]) -> Module:
    made = module.clone()
    recorded = {"linear": [], "heads": {"0": list(heads)}}
    item.run(made, Context(replay={item.name: recorded}))
    return made


@pytest.mark.parametrize("turned", [False, True], ids=["", "rotary"])
@pytest.mark.parametrize("heads", [(0,), (1, 3), (0, 2), (2, 3), (0, 1, 3)])
def test_the_split_is_exact(heads: tuple[int, ...], turned: bool) -> None:
    """A window over everything is a softmax: all heads are in their places."""
    module = _attention(turned=turned)
    made = _replayed(module, LinearizeAttention("window", window=T), heads)
    assert len(mixers(made)) == 2
    for sample in _samples():
        wanted, found = (evaluate(each, sample, oracle=True) for each in (module, made))
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, atol=1e-12)


@pytest.mark.parametrize("method", ["hedgehog", "elu", "t2r", "supra", "lightning", "liger"])
@pytest.mark.parametrize("heads", [(1,), (0, 3), (1, 2, 3)])
def test_every_head_is_what_it_is_in_a_whole_layer(method: str, heads: tuple[int, ...]) -> None:
    """Learned maps, decays and gains of a head stay those of its number."""
    module, whole = _attention(turned=True), _attention(turned=True)
    item = LinearizeAttention(method, features=12 if method == "hedgehog" else 0)
    item.run(whole, Context())
    made = _replayed(module, item, heads)
    linear = [head * G + i for head in heads for i in range(G)]
    rest = [head for head in range(K * G) if head not in linear]
    (sample, _) = _samples()
    before, all_linear, mixed = (
        evaluate(each, sample, oracle=True)["heads"] for each in (module, whole, made)
    )
    np.testing.assert_allclose(mixed[:, linear], all_linear[:, linear], atol=1e-9)
    np.testing.assert_allclose(mixed[:, rest], before[:, rest], atol=1e-9)
    assert np.abs(mixed[:, linear] - before[:, linear]).max() > 1e-3


def test_the_solver_keeps_the_softmax_of_the_heads_that_need_it() -> None:
    module = _attention()
    record = _applied(made := module.clone(), "method=elu,cache=0.6,tokens=512,stack=heads")
    chosen = tuple(record.decisions["heads"]["0"])
    assert record.decisions["linear"] == []
    assert record.stats["cache-bytes"] <= 0.6 * record.stats["cache-bytes-before"]

    def error(heads: tuple[int, ...]) -> float:
        other = _replayed(module, LinearizeAttention("elu"), heads)
        pairs = [[evaluate(each, s)["y"] for each in (module, other)] for s in _samples()]
        return float(sum(np.square(a - b).sum() for a, b in pairs))

    assert chosen == min(combinations(range(K), len(chosen)), key=error)
    (layer,) = record.decisions["layers"]
    assert sum(layer["heads"]) == pytest.approx(layer["error"])
    np.testing.assert_array_equal(np.argsort(layer["heads"])[:2], [1, 3])
    kinds = [node.op.name for node in mixers(made)]
    assert kinds == ["attention", "linear_attention"]


def test_a_budget_for_everything_leaves_everything() -> None:
    record = _applied(module := _attention(), "method=elu,cache=1.0,stack=heads")
    assert record.stats["linearized"] == 0
    assert [node.op for node in mixers(module)] == [attention.attention]


def test_a_split_of_a_form_without_weights_goes_by_results() -> None:
    record = _applied(_attention(), "method=lightning,cache=0.6,tokens=512,stack=heads")
    (layer,) = record.decisions["layers"]
    assert layer["kl"] is None
    assert sum(layer["heads"]) == pytest.approx(layer["error"])
    assert record.decisions["heads"]["0"]


def test_the_audit_has_one_entry_per_layer_with_heads_in_order() -> None:
    module = language_model()
    ids = np.random.default_rng(1).integers(0, V, (2, 24))
    made = module.clone()
    item = LinearizeAttention()
    item.run(made, Context(replay={item.name: {"linear": [], "heads": {"0": [1]}}}))
    report = audit_module(made, module, [{"input_ids": ids}])
    (layer,) = report["layers"]
    assert layer["kind"] == "softmax + linear"
    assert layer["kl"][0] == pytest.approx(0, abs=1e-6)
    assert layer["kl"][1] > 1e-3
    assert report["kept_kv_bytes_per_token"] * 2 == report["kv_bytes_per_token"]
    assert report["caches"] == 1
    assert report["state_bytes"] > 0


def test_a_split_layer_decodes() -> None:
    """Its softmax heads have a cache, its linear heads a state: parts give what the whole does."""
    module = language_model()
    item = LinearizeAttention()
    item.run(module, Context(replay={item.name: {"linear": [], "heads": {"0": [1]}}}))
    ids = np.random.default_rng(1).integers(0, V, (1, 9))
    whole = evaluate(module, {"input_ids": ids})["logits"]
    regraft.apply(module, "carry-states", check="off")
    assert len(module.states) >= 3
    sizes = {str(x.name): x for x in module.graph.inputs if x.name != "input_ids"}
    held = {
        name: np.zeros([d if isinstance(d, int) else 0 if str(d) == "past" else 1
                        for d in value.shape or ()], (value.dtype or DType.F32).numpy)
        for name, value in sizes.items()
    }  # fmt: skip
    rows = []
    for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
        found = evaluate(module, {"input_ids": part, **held})
        held = {state.input: found[state.output] for state in module.states}
        rows.append(found["logits"])
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(np.concatenate(rows, 1), whole, atol=64 * eps)
