"""Linear attention: recurrent, chunked and parallel forms are one function."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.soundness import Sample, attack, floats
from tests.ir.ops.both_ways import computed

Array = np.ndarray[Any, Any]

B, H, G, T, D, E = 2, 4, 2, 11, 4, 3
RNG = np.random.default_rng(5)


def _floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


Q, K, V = _floats(B, H, T, D), _unit(_floats(B, H // G, T, D)), _floats(B, H // G, T, E)
STATE = _floats(B, H // G, D, E)
DECAYS = {
    "none": None,
    "per head": -np.abs(_floats(1, H // G, 1, 1)),
    "per position": -np.abs(_floats(B, H // G, T, 1)),
    "per channel": -np.abs(_floats(B, H // G, T, D)),
    "strong": np.full((B, H // G, T, D), -40, np.float32),
}
BETA = RNG.uniform(0, 1, (B, 1, T, 1)).astype(np.float32)


def _rule(decay: Array | None, beta: Array | None) -> str:
    gated = "" if decay is None else "gated"
    delta = "" if beta is None else "delta"
    return "_".join(filter(None, (gated, delta))) or "linear"


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 11, 64, 0])
@pytest.mark.parametrize("beta", [None, BETA], ids=["add", "delta"])
@pytest.mark.parametrize("decay", DECAYS)
def test_any_chunk_size_is_the_recurrence(decay: str, beta: Array | None, chunk_size: int) -> None:
    gates = DECAYS[decay]
    attrs = {"rule": _rule(gates, beta), "scale": 0.5, "kv_groups": G}
    operands = [Q, K, V, STATE, gates, beta]
    out, state = computed(linear_attention, operands, chunk_size=chunk_size, **attrs)
    S = STATE.astype(np.float64)  # straight from the definition
    for t in range(T):
        k, v = K[:, :, t, :, None].astype(np.float64), V[:, :, t, None, :]
        if gates is not None:
            S = S * np.exp(np.broadcast_to(gates, (B, H // G, T, gates.shape[3]))[:, :, t, :, None])
        if beta is not None:
            v = beta[:, :, t, :, None] * (v - k.swapaxes(-1, -2) @ S)
        S = S + k * v
        read = Q[:, :, t, None, :] @ np.repeat(S, G, 1) * 0.5
        np.testing.assert_allclose(out[:, :, t], read[:, :, 0], atol=1e-5)
    np.testing.assert_allclose(state, S, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1.2])
@pytest.mark.parametrize("chunk_size", [7, 32, 64, 0])
def test_chunks_of_keys_that_are_all_alike(chunk_size: int, size: float) -> None:
    """The inverse within a chunk keeps its digits where powers of what it inverts are large."""
    q, v = _floats(1, 1, 64, D), _floats(1, 1, 64, E)
    k = np.full((1, 1, 64, D), size / D**0.5, np.float32)
    beta = np.ones((1, 1, 64, 1), np.float32)
    operands = [q, k, v, None, None, beta]
    out, state = computed(
        linear_attention, operands, rule="delta", scale=0.5, chunk_size=chunk_size
    )
    want, last = computed(linear_attention, operands, rule="delta", scale=0.5, chunk_size=1)
    np.testing.assert_allclose(out, want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(state, last, atol=1e-5 * np.abs(last).max())


@pytest.mark.parametrize("beta", [None, BETA], ids=["add", "delta"])
@pytest.mark.parametrize("decay", ["none", "per position", "per channel"])
def test_states_chain_at_any_cut_and_have_one_size(decay: str, beta: Array | None) -> None:
    gates = DECAYS[decay]
    attrs = {"rule": _rule(gates, beta), "scale": 0.5, "kv_groups": G}
    whole, last = computed(linear_attention, [Q, K, V, STATE, gates, beta], **attrs)
    for cuts in ((0, 4, T), (0, 1, 2, 9, T), tuple(range(T + 1))):
        state, parts = STATE, []
        for start, end in pairwise(cuts):
            own = [None if x is None else x[:, :, start:end] for x in (Q, K, V, gates, beta)]
            out, state = computed(linear_attention, [*own[:3], state, *own[3:]], **attrs)
            assert state.shape == STATE.shape
            parts.append(out)
        np.testing.assert_allclose(np.concatenate(parts, 2), whole, atol=1e-5)
        np.testing.assert_allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [0, 1, 3])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_the_sum_makes_weights_of_features(feature_map: str, chunk_size: int) -> None:
    apply = FEATURE_MAPS[feature_map].apply
    out, state = computed(
        linear_attention, [Q, np.abs(K) + 0.1, V], rule="linear", scale=0.7, kv_groups=G,
        feature_map=feature_map, normalizer="sum", chunk_size=chunk_size, epsilon=1e-3,
    ) if feature_map != "none" else computed(
        linear_attention, [np.abs(Q), np.abs(K) + 0.1, V], rule="linear", scale=0.7, kv_groups=G,
        normalizer="sum", chunk_size=chunk_size, epsilon=1e-3,
    )  # fmt: skip
    q = np.abs(Q) if feature_map == "none" else Q
    fq, fk = apply(q), np.repeat(apply(np.abs(K) + 0.1), G, 1)
    weights = np.tril(fq @ fk.swapaxes(-1, -2)) * 0.7
    expected = weights @ np.repeat(V, G, 1) / (weights.sum(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(out, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    assert state.shape == (B, H // G, fk.shape[3], E + 1)


def test_states_of_the_sum_chain() -> None:
    attrs = {
        "rule": "gated", "scale": 0.7, "kv_groups": G, "feature_map": "hedgehog",
        "normalizer": "sum",
    }  # fmt: skip
    gates = DECAYS["per head"]
    whole, last = computed(linear_attention, [Q, K, V, None, gates], **attrs)
    first, state = computed(
        linear_attention, [*(x[:, :, :5] for x in (Q, K, V)), None, gates], **attrs
    )
    second, end = computed(
        linear_attention, [*(x[:, :, 5:] for x in (Q, K, V)), state, gates], **attrs
    )
    np.testing.assert_allclose(np.concatenate([first, second], 2), whole, atol=1e-5)
    np.testing.assert_allclose(end, last, atol=1e-5)


def test_every_query_reads_all_positions_where_not_causal() -> None:
    q = _floats(B, H, 5, D)
    out, _ = computed(
        linear_attention, [q, K, V], rule="linear", scale=0.7, kv_groups=G, causal=False
    )
    expected = 0.7 * (q @ np.repeat(K, G, 1).swapaxes(-1, -2)) @ np.repeat(V, G, 1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_mean_makes_rows_that_sum_to_one_and_tell_queries_apart() -> None:
    attrs = {"rule": "linear", "scale": 0.7, "kv_groups": G, "causal": False}
    one = np.ones_like(V)
    sums, _ = computed(linear_attention, [Q, K, one], normalizer="mean", **attrs)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    out, _ = computed(linear_attention, [Q, K, V], normalizer="mean", **attrs)
    products = Q @ np.repeat(K, G, 1).swapaxes(-1, -2)
    weights = 0.7 * (products - products.mean(-1, keepdims=True)) / T + 1 / T
    np.testing.assert_allclose(out, weights @ np.repeat(V, G, 1), atol=1e-5)
    twice, _ = computed(linear_attention, [2 * Q, K, V], normalizer="mean", **attrs)
    assert np.abs(twice - out).max() > 0.1  # weights over their sum would be the same


def test_symbolic_sizes() -> None:
    attrs = {"rule": "gated", "scale": 0.5, "kv_groups": G, "chunk_size": 4}
    computed(linear_attention, [Q, K, V, STATE, DECAYS["per position"]], symbolic=True, **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"rule": "linear", "normalizer": "sum", "feature_map": "elu"},
        {"rule": "linear", "feature_map": "hedgehog"},
        {"rule": "linear", "causal": False, "normalizer": "mean"},
        {"rule": "linear", "causal": False},
        {"rule": "linear", "feature_map": "relu"},
    ],
)
def test_the_axis_rule_holds(attrs: dict[str, Any]) -> None:
    operands = (floats(B, H, T, D), floats(B, H // G, T, D), floats(B, H // G, T, E))
    report = attack(linear_attention, Sample(operands, {"scale": 0.5, "kv_groups": G, **attrs}))
    assert report.broken == []
    assert {"b", "h", "g"} <= report.tested


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"feature_map": "cosine"}, "one of none, relu"),
        ({"normalizer": "max"}, "one of none, sum, mean"),
        ({"normalizer": "mean"}, "neither causal nor"),
        ({"rule": "delta", "causal": False}, "needs `beta`|is causal"),
    ],
)
def test_what_does_not_fit_is_refused(attrs: dict[str, Any], message: str) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 2, 3, 4)))
    with pytest.raises(TypeInferenceError, match=message):
        graph.create(linear_attention, [x, x, x], {"rule": "linear", "scale": 1.0, **attrs})
