"""Hybrid attention: one sum over a window of softmax and linear attention of what left it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.types import DType, TensorType
from tests.ir.ops.both_ways import computed

Array = np.ndarray[Any, Any]

B, K, G, D, E, F = 2, 2, 2, 4, 3, 5
RNG = np.random.default_rng(7)


def _operands(length: int, *, scale: float = 1.0, is_masked: bool = False) -> list[Array | None]:
    def floats(*shape: int) -> Array:
        return (scale * RNG.standard_normal(shape)).astype(np.float32)

    visible = RNG.random((B, length)) < 0.7 if is_masked else None
    gain = RNG.uniform(0.1, 1, K * G).astype(np.float32)
    return [
        floats(B, K * G, length, D), floats(B, K, length, D), floats(B, K, length, E),
        np.abs(floats(B, K * G, length, F)), np.abs(floats(B, K, length, F)), gain, visible,
    ]  # fmt: skip


def _weights(operands: list[Array | None], window: int, merge: str) -> Array:
    """Returns the quadratic form of the weights, f64[B, H, T, T], not yet divided by their sum."""
    q, k, _, fq, fk, gain = (np.asarray(x, np.float64) for x in operands[:6])
    visible = operands[6]
    k, fk = np.repeat(k, G, axis=1), np.repeat(fk, G, axis=1)
    apart = np.arange(q.shape[2])[:, None] - np.arange(q.shape[2])
    shown = np.ones((B, 1, 1, q.shape[2]), bool) if visible is None else visible[:, None, None]
    near = (apart >= 0) & (apart < window) & shown
    far = (apart >= window) & shown
    scores = np.where(near, 0.5 * q @ k.swapaxes(-1, -2), -np.inf)
    top = np.maximum(scores.max(-1, keepdims=True), -1e30)
    if merge == "lse":
        top = np.zeros_like(top)
    made, linear = np.exp(scores - top), fq @ fk.swapaxes(-1, -2)
    if merge == "share":
        mass = np.where(near, linear, 0).sum(-1, keepdims=True) + 1e-6
        made = made * mass / np.maximum(made.sum(-1, keepdims=True), 1e-30)
    return np.asarray(gain.reshape(1, -1, 1, 1) * made + np.where(far, linear, 0))


@pytest.mark.parametrize("merge", ["lolcats", "lse", "share"])
@pytest.mark.parametrize(("length", "window"), [(1, 3), (11, 1), (11, 4), (11, 30), (70, 17)])
@pytest.mark.parametrize("is_masked", [False, True], ids=["full", "masked"])
def test_the_blocks_are_one_sum_over_all_keys(
    length: int, window: int, merge: str, is_masked: bool
) -> None:
    operands = _operands(length, is_masked=is_masked)
    attrs = {"scale": 0.5, "window": window, "kv_groups": G, "merge": merge}
    out, *_ = computed(hybrid_attention, operands, symbolic=True, **attrs)
    weights = _weights(operands, window, merge)
    values = np.repeat(np.asarray(operands[2], np.float64), G, axis=1)
    expected = weights @ values / (weights.sum(-1, keepdims=True) + 1e-12)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("merge", ["lolcats", "lse", "share"])
def test_a_window_over_everything_is_softmax(merge: str) -> None:
    operands = _operands(9)
    out, *_ = computed(hybrid_attention, operands, scale=0.5, window=9, kv_groups=G, merge=merge)
    q, k, v = (np.asarray(x, np.float64) for x in operands[:3])
    scores = 0.5 * q @ np.repeat(k, G, axis=1).swapaxes(-1, -2)
    scores = np.where(np.tri(9, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ np.repeat(v, G, axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("merge", ["lolcats", "lse", "share"])
@pytest.mark.parametrize("cuts", [(0, 4, 11), (0, 1, 2, 9, 11), tuple(range(12))])
def test_states_chain_at_any_cut_and_have_one_size(merge: str, cuts: tuple[int, ...]) -> None:
    operands = _operands(11, is_masked=True)
    attrs = {"scale": 0.5, "window": 3, "kv_groups": G, "merge": merge}
    whole, *last = computed(hybrid_attention, operands, **attrs)
    state: list[Array | None] = [None, None]
    parts = []
    for start, end in pairwise(cuts):
        span = slice(start, end)
        rows = [None if x is None else x[:, :, span] for x in operands[:5]]
        mask = None if operands[6] is None else operands[6][:, span]
        part, *found = computed(hybrid_attention, [*rows, operands[5], mask, *state], **attrs)
        parts.append(part)
        state = list(found)
        assert [x.shape for x in found] == [(B, K, F, E + 1), (B, K, 3, D + F + E + 1)]
    np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, atol=1e-5)
    for own, other in zip(state, last, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


def test_branches_are_the_parts_of_the_sum() -> None:
    operands = _operands(11)
    attrs = {"scale": 0.5, "window": 3, "kv_groups": G, "merge": "lse"}
    weights = _weights(operands, 3, "lse")
    apart = np.arange(11)[:, None] - np.arange(11)
    values = np.repeat(np.asarray(operands[2], np.float64), G, axis=1)
    for branches, part in (("window", apart < 3), ("linear", apart >= 3)):
        out, *_ = computed(hybrid_attention, operands, branches=branches, **attrs)
        own = np.where(part, weights, 0)
        expected = own @ values / (own.sum(-1, keepdims=True) + 1e-12)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    nothing, *_ = computed(hybrid_attention, operands, branches="none", **attrs)
    assert not nothing.any()


def test_large_scores_stay_finite() -> None:
    operands = _operands(11, scale=60.0)
    for merge in ("lolcats", "lse", "share"):
        out, *_ = computed(
            hybrid_attention, operands, scale=0.5, window=3, kv_groups=G, merge=merge
        )
        assert np.isfinite(out).all()


def test_what_does_not_fit_is_refused() -> None:
    graph = Graph()
    shapes = [(B, 4, 7, D), (B, 2, 7, D), (B, 2, 7, E), (B, 4, 7, F), (B, 2, 7, F)]
    values = [graph.add_input(f"x{i}", TensorType(DType.F32, s)) for i, s in enumerate(shapes)]
    for attrs, message in (
        ({"window": 0, "kv_groups": 2}, "a query sees itself"),
        ({"window": 2, "kv_groups": 1}, "query heads and kv_groups x key heads"),
        ({"window": 2, "kv_groups": 2, "merge": "sum"}, "`merge` is `sum`"),
    ):
        with pytest.raises(TypeInferenceError, match=message):
            graph.create(hybrid_attention, values, {"scale": 1.0, **attrs})
