"""Modifiers and normalizers of attention: values by definition, in the body and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.attention import attention
from regraft.ir.ops.attention_weights import NORMALIZERS
from regraft.ir.types import DType, TensorType
from regraft.soundness import Sample, attack, floats
from tests.ir.ops.both_ways import computed

B, H, G, S, T, D, E = 2, 4, 2, 5, 6, 5, 7
RNG = np.random.default_rng(3)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = 2 * _floats(B, H, S, D), 2 * _floats(B, H // G, T, D), _floats(B, H // G, T, E)
MASK = _floats(B, 1, S, T)
KEEP = RNG.integers(0, 2, (B, H, S, T)).astype(bool)
KEEP[0, 0, 2] = False  # a query that sees nothing
LOWEST = np.where(KEEP, 0, np.finfo(np.float32).min).astype(np.float32)
LENGTHS = np.array([4, 6])
GATES = -np.abs(_floats(B, H, S))
ALPHA = np.array([1.05, 1.4, 1.5, 1.9], np.float32)
SINKS = _floats(H)

NORMALIZED = {
    "two_pass": {},
    "clipped": {"normalizer_parameters": (-0.03, 1.01)},
    "clipped, by keys": {"normalizer_parameters": (0.0, 1.0, 0.4)},
    "stablemax": {},
    "softplus": {},
    "softplus, sharp": {"normalizer_parameters": (3.0,)},
    "softplus, p 1": {"normalizer_parameters": (1.0, 0.0)},
    "entmax": {},
    "entmax, sparsemax": {"normalizer_parameters": (2.0,)},
    "entmax, any": {"normalizer_parameters": (1.3,)},
    "entmax, softmax": {"normalizer_parameters": (1.0,)},
    "top_k": {"normalizer_parameters": (2.0,)},
    "top_k, all": {"normalizer_parameters": (9.0,)},
}
MASKS = {
    "none": ({}, {}),
    "causal": ({}, {"causal_offset": 1}),
    "late": ({}, {"causal_offset": -2}),
    "float": ({"mask": MASK}, {"causal_offset": 0}),
    "bool": ({"mask": KEEP}, {}),
    "lowest": ({"mask": LOWEST}, {}),
    "lengths": ({"lengths": LENGTHS}, {"softcap": 2.0}),
}


def _row(scores: np.ndarray, name: str, parameters: tuple[float, ...]) -> np.ndarray:
    """The weights of one row of visible scores, straight from the definition."""
    x, n = scores.astype(np.float64), len(scores)
    exp = np.exp(x - x.max())
    if name == "clipped":
        gamma, zeta, alpha = (
            (*parameters, 0.0, 1.0, 0.0)[: max(3, len(parameters))][:3]
            if (len(parameters) == 3)
            else (*parameters, 0.0)
        )
        gamma -= alpha / n
        return np.clip((zeta - gamma) * exp / exp.sum() + gamma, 0, 1)
    if name == "stablemax":
        s = np.array([v + 1 if v >= 0 else 1 / (1 - v) for v in x])
        return s / s.sum()
    if name == "softplus":
        a = np.log1p(np.exp(x))
        a /= a.sum()
        if parameters:
            p, o = (*parameters, 1.0)[:2]
            a = np.maximum(n * a - (0 if n <= 3 else o), 0) ** p
            a /= a.sum()
        return a
    if name == "entmax" and parameters != (1.0,):
        alpha = (parameters or (1.5,))[0]
        z = (alpha - 1) * x
        low, high = z.max() - 1, z.max()
        for _ in range(200):
            tau = (low + high) / 2
            total = (np.maximum(z - tau, 0) ** (1 / (alpha - 1))).sum()
            low, high = (tau, high) if total > 1 else (low, tau)
        return np.maximum(z - low, 0) ** (1 / (alpha - 1))
    if name == "top_k":
        k = min(int(parameters[0]), n)
        exp = np.where(x >= np.sort(x)[-k], exp, 0)
    return exp / exp.sum()


def _reference(name: str, extra: dict, attrs: dict, alpha: np.ndarray | None = None) -> np.ndarray:
    out = np.zeros((B, H, S, E))
    mask, lengths = extra.get("mask"), extra.get("lengths")
    hidden = -np.inf if name == "two_pass" else -9000  # a softmax needs no more than the number
    for b, h, s in np.ndindex(B, H, S):
        keys, scores = [], []
        for t in range(T):
            score = 0.6 * float(Q[b, h, s] @ K[b, h // G, t])
            if cap := attrs.get("softcap"):
                score = cap * np.tanh(score / cap)
            own = None if mask is None else np.broadcast_to(mask, (B, H, S, T))[b, h, s, t]
            visible = own is None or bool(own if mask.dtype == bool else own > hidden)
            if own is not None and mask.dtype != bool:
                score += own
            visible &= lengths is None or t < lengths[b]
            offset = attrs.get("causal_offset")
            visible &= offset is None or t <= s + offset
            if visible:
                keys.append(t)
                scores.append(score)
        if keys:
            given = attrs.get("normalizer_parameters", ())
            row = _row(np.array(scores), name, given if alpha is None else (float(alpha[h]),))
            out[b, h, s] = row @ V[b, h // G, keys]
    return out


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("case", NORMALIZED)
def test_normalizers_follow_their_definition_everywhere(case: str, masked: str) -> None:
    name = case.split(",")[0]
    extra, placed = MASKS[masked]
    attrs = {"normalizer": name, **NORMALIZED[case], **placed}
    operands = [Q, K, V, extra.get("mask"), extra.get("lengths")]
    (out,) = computed(attention, operands, scale=0.6, kv_groups=G, **attrs)
    # sums of 6 terms of size about 1; a power of 1 / 0.3 or 3 multiplies rounding
    bound = 256 * np.finfo(np.float32).eps
    np.testing.assert_allclose(out, _reference(name, extra, attrs), atol=bound)


def test_every_normalizer_is_tested() -> None:
    assert {case.split(",")[0] for case in NORMALIZED} | {"softmax"} == set(NORMALIZERS)


def test_alpha_per_head() -> None:
    operands = [Q, K, V, KEEP, None, None, None, ALPHA]
    (out,) = computed(attention, operands, scale=0.6, kv_groups=G, normalizer="entmax")
    expected = _reference("entmax", {"mask": KEEP}, {}, ALPHA)
    np.testing.assert_allclose(out, expected, atol=256 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_selective_counts_earlier_queries_of_the_first_head(budget: float) -> None:
    attrs = {"causal_offset": 0, "modifier": "selective", "modifier_parameters": (budget,)}
    (out,) = computed(attention, [Q, K, V], scale=0.6, kv_groups=G, **attrs)
    for b in range(B):
        passed = np.zeros(T)
        for s in range(S):
            seen = np.array([t for t in range(s + 1) if not budget or passed[t] <= budget])
            for h in range(H):
                x = 0.6 * K[b, h // G] @ Q[b, h, s] - passed
                w = np.exp(x[seen] - x[seen].max())
                expected = w @ V[b, h // G, seen] / w.sum()
                np.testing.assert_allclose(out[b, h, s], expected, atol=1e-5)
            own = np.maximum(0.6 * K[b, 0] @ Q[b, 0, s], 0)
            own[[0, s]] = 0
            own[s + 1 :] = 0
            passed += own


def test_selective_does_not_see_the_future() -> None:
    attrs = {"scale": 0.6, "kv_groups": G, "causal_offset": 0, "modifier": "selective"}
    (out,) = computed(attention, [Q, K, V], **attrs)
    q, k = Q.copy(), K.copy()
    q[:, :, 3:], k[:, :, 3:] = 9, -9
    (moved,) = computed(attention, [q, k, V], **attrs)
    assert (out[:, :, :3] == moved[:, :, :3]).all()
    assert (out[:, :, 3:] != moved[:, :, 3:]).any()


def test_threshold_measures_distance_in_keys_that_stay() -> None:
    operands = [Q, K, V, *[None] * 5, GATES]
    attrs = {"causal_offset": 1, "modifier": "threshold"}
    (out,) = computed(attention, operands, scale=0.6, kv_groups=G, **attrs)
    hidden = 0
    for b, h, s in np.ndindex(B, H, S):
        x = 0.6 * K[b, h // G, : s + 2] @ Q[b, h, s]
        stay = np.flatnonzero(x > 0)
        hidden += len(x) - len(stay)
        expected = np.zeros(E)
        if len(stay):
            # all keys stay: the distance is that of positions
            x = x[stay] + GATES[b, h, s] * np.arange(len(stay))[::-1]
            w = np.exp(x - x.max())
            expected = w @ V[b, h // G, stay] / w.sum()
        np.testing.assert_allclose(out[b, h, s], expected, atol=1e-5)
    assert hidden


@pytest.mark.parametrize("case", NORMALIZED)
def test_sinks_take_weight_as_one_more_key_of_no_value(case: str) -> None:
    attrs = {"scale": 0.6, "normalizer": case.split(",")[0], **NORMALIZED[case]}
    if attrs["normalizer"] == "top_k":
        attrs["normalizer_parameters"] = (9.0,)
    q, k, v = Q[:, :1], K[:, :1], V[:, :1]
    (out,) = computed(attention, [q, k, v, KEEP[:, :1], None, SINKS[:1]], **attrs)
    assert np.abs(out).max() > 0.1
    if attrs["normalizer"] in ("clipped", "softplus") and attrs.get("normalizer_parameters"):
        return  # they count the keys, and a sink is none
    # one more key whose product with the queries is the sink
    channel = np.ones((B, 1, S, 1), np.float32)
    own = np.zeros((B, 1, 1, D + 1), np.float32)
    own[..., -1] = SINKS[0] / 0.6
    longer = np.concatenate([k, np.zeros((B, 1, T, 1), np.float32)], 3)
    more = [
        np.concatenate([q, channel], 3), np.concatenate([longer, own], 2),
        np.concatenate([v, np.zeros((B, 1, 1, E), np.float32)], 2),
        np.concatenate([KEEP[:, :1], np.ones((B, 1, S, 1), bool)], 3),
    ]  # fmt: skip
    (expected,) = computed(attention, more, **attrs)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_symbols_and_one_position() -> None:
    for name in NORMALIZERS:
        (out,) = computed(
            attention, [Q[:, :, :1], K[:, :, :1], V[:, :, :1]], symbolic=True, scale=0.6,
            kv_groups=G, causal_offset=0, normalizer=name,
        )  # fmt: skip
        np.testing.assert_allclose(out, np.repeat(V[:, :, :1], G, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["stablemax", "softplus", "clipped", "two_pass", "entmax"])
def test_large_scores_of_half_precision_stay_finite(name: str) -> None:
    q = np.array([1e4, -1e4, 1, 3], np.float16).reshape(1, 1, 4, 1)
    k = np.array([1, -1, 0.5, 1e-4], np.float16).reshape(1, 1, 4, 1)
    v = np.eye(4, dtype=np.float16).reshape(1, 1, 4, 4)
    parameters = (15.0,) if name == "softplus" else ()
    (out,) = computed(
        attention, [q, k, v], scale=1.0, normalizer=name, softmax_dtype=DType.F32,
        normalizer_parameters=parameters,
    )  # fmt: skip
    assert np.isfinite(out.astype(np.float32)).all()
    if NORMALIZERS[name].sums_to_one:
        np.testing.assert_allclose(out.sum(-1, dtype=np.float64), 1, atol=4 * 2**-11)


@pytest.mark.parametrize("case", NORMALIZED)
def test_the_axis_rule_holds(case: str) -> None:
    attrs = {"scale": 0.6, "kv_groups": G, "normalizer": case.split(",")[0], **NORMALIZED[case]}
    operands = (floats(B, H, S, D), floats(B, H // G, T, D), floats(B, H // G, T, E))
    report = attack(attention, Sample(operands, attrs))
    assert report.broken == []
    assert report.tested == {"b", "h", "g", "s", "d", "e"}


def test_the_axis_rule_of_gates_and_alpha_holds() -> None:
    operands = (floats(B, H, S, D), floats(B, H // G, T, D), floats(B, H // G, T, E))
    gated = Sample(
        (*operands, None, None, None, None, None, floats(B, H, S)),
        {"scale": 0.6, "kv_groups": G, "modifier": "threshold"},
    )
    report = attack(attention, gated)
    assert report.broken == []
    assert report.tested == {"b", "h", "g", "s", "d", "e"}


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"normalizer": "softmin"}, "one of softmax, two_pass"),
        ({"modifier": "often"}, "one of none, selective, threshold"),
        ({"normalizer_parameters": (1.0,)}, "takes none"),
        ({"modifier": "threshold"}, "`gates` belong to"),
        ({"modifier": "selective"}, "needs `causal_offset`"),
    ],
)
def test_what_does_not_fit_is_refused(attrs: dict, message: str) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 2, 3, 4)))
    with pytest.raises(TypeInferenceError, match=message):
        graph.create(attention, [x, x, x], {"scale": 1.0, **attrs})
