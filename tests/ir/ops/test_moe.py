from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.moe import SCORINGS, moe, route
from regraft.ir.ops.moe_hidden import ACTIVATIONS
from regraft.ir.types import DType, TensorType
from regraft.soundness import Sample, attack, floats
from tests.ir.ops.both_ways import computed

E, F, D, R = 5, 6, 4, 3
RNG = np.random.default_rng(1)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X, ROUTER, UP, DOWN = _floats(2, 7, D), _floats(2, 7, E), _floats(E, F, D), _floats(E, R, F)
GATE, UP_BIAS, DOWN_BIAS, GATE_BIAS = _floats(E, F, D), _floats(E, F), _floats(E, R), _floats(E, F)
SCORE_BIAS = 3 * _floats(E)

ACTIVATE = {
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "hard_swish": lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def _reference(scoring: str, activation: str, *, full: bool) -> np.ndarray:
    """Token by token, as the papers state it."""
    out = np.zeros((2, 7, R))
    act = np.vectorize(ACTIVATE[activation])
    for i in np.ndindex(2, 7):
        logits = ROUTER[i].astype(np.float64)
        soft = np.exp(logits) / np.exp(logits).sum()
        score = {"softmax": soft, "sigmoid": 1 / (1 + np.exp(-logits)), "topk_softmax": logits}
        chosen = np.argsort(-(score[scoring] + (SCORE_BIAS if full else 0)))[:2]
        weights = score[scoring][chosen]
        if scoring == "topk_softmax":
            weights = np.exp(weights) / np.exp(weights).sum()
        if full:
            weights = 1.5 * weights / weights.sum()
        for e, weight in zip(chosen, weights, strict=True):
            if full:
                hidden = act(GATE[e] @ X[i] + GATE_BIAS[e]) * (UP[e] @ X[i] + UP_BIAS[e])
                out[i] += weight * (DOWN[e] @ hidden + DOWN_BIAS[e])
            else:
                out[i] += weight * (DOWN[e] @ act(UP[e] @ X[i]))
    return out


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", sorted(ACTIVATE))
@pytest.mark.parametrize("scoring", [each for each in SCORINGS if each != "given"])
def test_moe_follows_its_definition_everywhere(scoring: str, activation: str, full: bool) -> None:
    rest = [GATE, UP_BIAS, DOWN_BIAS, GATE_BIAS, SCORE_BIAS] if full else []
    attrs = {"routed_scale": 1.5, "renormalize": True} if full else {}
    (out,) = computed(
        moe, [X, ROUTER, UP, DOWN, *rest], opset=17,
        top_k=2, scoring=scoring, activation=activation, **attrs,
    )  # fmt: skip
    expected = _reference(scoring, activation, full=full)
    # sums of F x D products
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("weigh_input", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_moe_given_weights_limits_and_offsets(biased: bool, weigh_input: bool) -> None:
    weights = np.where(RNG.random(ROUTER.shape) < 0.5, ROUTER, 0)
    weights[..., 0] = 0
    rest = [GATE, UP_BIAS, DOWN_BIAS, GATE_BIAS] if biased else [GATE]
    (out,) = computed(
        moe, [X, weights, UP, DOWN, *rest], opset=17, top_k=E - 1, scoring="given", limit=0.7,
        up_offset=1.0, weigh_input=weigh_input, routed_scale=2.0,
    )  # fmt: skip
    zero = np.zeros((E, F)), np.zeros((E, R)), np.zeros((E, F))
    up_bias, down_bias, gate_bias = (UP_BIAS, DOWN_BIAS, GATE_BIAS) if biased else zero
    expected = np.zeros((2, 7, R))
    for i in np.ndindex(2, 7):
        for e in np.flatnonzero(weights[i]):
            share = 2.0 * float(weights[i][e])
            read, share = (X[i] * share, 1.0) if weigh_input else (X[i], share)
            gate = np.minimum(GATE[e] @ read + gate_bias[e], 0.7)
            up = np.clip(UP[e] @ read + up_bias[e], -0.7, 0.7) + 1
            expected[i] += share * (DOWN[e] @ (gate / (1 + np.exp(-gate)) * up) + down_bias[e])
    # sums of F x D products
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("bounds", ["clip_after", "soft"])
def test_moe_other_bounds_and_a_norm_of_results(bounds: str) -> None:
    """Step 3.7 bounds the gate behind its activation, Inkling 2 softly; Muse Spark has a norm."""
    (out,) = computed(
        moe, [X, ROUTER, UP, DOWN, GATE], opset=17, top_k=E, scoring="given", bounds=bounds,
        limit=0.7, gate_limit=0.4, norm_epsilon=0.01,
    )  # fmt: skip
    expected = np.zeros((2, 7, R))
    for i in np.ndindex(2, 7):
        for e in range(E):
            gate, up = GATE[e] @ X[i], UP[e] @ X[i]
            opened = 1 / (1 + np.exp(-gate))
            if bounds == "soft":
                hidden = 0.4 * np.tanh(gate / 0.4) * opened * 0.7 * np.tanh(up / 0.7)
            else:
                hidden = np.minimum(gate * opened, 0.4) * np.clip(up, -0.7, 0.7)
            given = DOWN[e] @ hidden
            expected[i] += ROUTER[i][e] * given / np.sqrt(np.mean(given**2) + 0.01)
    # sums of F x D products
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"bounds": "hard"}, "`bounds` is `hard`"),
        ({"bounds": "soft"}, "soft bounds"),
        ({"bounds": "soft", "limit": 1.0, "activation": "gelu"}, "soft bounds"),
    ],
)
def test_moe_bounds_that_mean_nothing(attrs: dict[str, object], message: str) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        computed(moe, [X, ROUTER, UP, DOWN, GATE], opset=17, top_k=1, **attrs)


def test_moe_equal_scores_choose_the_lower_expert() -> None:
    router = np.zeros_like(ROUTER)
    down = np.zeros_like(DOWN)
    down[0] = DOWN[0]
    bias = np.arange(E * R, dtype=np.float32).reshape(E, R)
    (out,) = computed(
        moe, [X, router, np.zeros_like(UP), down, None, None, bias], opset=17, top_k=1,
        scoring="topk_softmax", activation="relu",
    )  # fmt: skip
    assert (out == bias[0]).all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_moe_rule_holds(activation: str) -> None:
    operands = (
        floats(2, 7, D), floats(2, 7, E), floats(E, F, D), floats(E, R, F), floats(E, F, D),
        floats(E, F), floats(E, R), floats(E, F), floats(E),
    )  # fmt: skip
    attrs = {"top_k": 2, "scoring": "sigmoid", "activation": activation}
    for count in (4, 9):
        report = attack(moe, Sample((*operands[:count], *[None] * (9 - count)), attrs))
        assert report.broken == []
        assert report.tested == {"b0", "b1", "d", "f", "o"}  # experts are not droppable


def test_moe_says_which_sizes_disagree() -> None:
    graph = Graph()
    shapes = [(7, D), (7, E), (E, F, D + 1), (E, R, F)]
    inputs = [graph.add_input(None, TensorType(DType.F32, shape)) for shape in shapes]
    with pytest.raises(TypeInferenceError, match="the channels of x and `up` have sizes 5 and 4"):
        graph.create(moe, inputs, {"top_k": 1})
    scaled = [*inputs[:2], graph.add_input(None, TensorType(DType.F32, (E, F, D))), *inputs[3:]]
    with pytest.raises(TypeInferenceError, match="given weights are neither"):
        graph.create(moe, scaled, {"top_k": 1, "scoring": "given", "renormalize": True})
    with pytest.raises(TypeInferenceError, match="`scoring` is `tanh`"):
        graph.create(moe, inputs, {"top_k": 1, "scoring": "tanh"})


def _routed(select: str, *, gain: bool, bias: bool, **attrs: float) -> np.ndarray:
    """Token by token, expert by expert, as `moe_routing` states it: weights [tokens, E]."""
    logits = ROUTER.reshape(-1, E).astype(np.float64)
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ranked = soft + (SCORE_BIAS if bias else 0)
    weights = np.zeros_like(soft)
    top_k = int(attrs["top_k"])
    if select == "expert_choice":
        room = int(np.ceil(attrs["capacity"] * len(soft) * top_k / E))
        for e in range(E):
            best = sorted(range(len(soft)), key=lambda t: (-ranked[t, e], t))[:room]
            weights[best, e] = soft[best, e]
    else:
        for t, row in enumerate(ranked):
            before = 0.0
            for place, e in enumerate(sorted(range(E), key=lambda e: (-row[e], e))[:top_k]):
                kept = (
                    place == 0
                    or {
                        "top_k": True,
                        "top_p": before < attrs.get("threshold", 0),
                        "threshold": soft[t, e] >= attrs.get("threshold", 0),
                    }[select]
                )
                before += soft[t, e]
                weights[t, e] = soft[t, e] if kept else 0
        if attrs.get("capacity"):
            weights = _within(weights, ranked, attrs["capacity"], top_k)
    if gain:
        weights = np.where(weights > 0, 1 + GAIN * weights, 0)
    return weights


def _within(weights: np.ndarray, ranked: np.ndarray, capacity: float, top_k: int) -> np.ndarray:
    """First choices of all tokens take their places, then second ones."""
    room = np.full(E, int(np.ceil(capacity * len(weights) * top_k / E)))
    kept = np.zeros_like(weights)
    for place in range(top_k):
        for t, row in enumerate(ranked):
            e = int(np.argsort(-row, kind="stable")[place])
            if weights[t, e] > 0 and room[e] > 0:
                room[e] -= 1
                kept[t, e] = weights[t, e]
    return kept


GAIN = _floats(E)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("select", "attrs"),
    [
        ("top_k", {"top_k": 2, "capacity": 0.75}),
        ("top_k", {"top_k": 1, "capacity": 1.0}),
        ("top_p", {"top_k": 5, "threshold": 0.7}),
        ("top_p", {"top_k": 3, "threshold": 0.5, "capacity": 1.25}),
        ("threshold", {"top_k": 5, "threshold": 0.25}),
        ("expert_choice", {"top_k": 2, "capacity": 1.0}),
        ("expert_choice", {"top_k": 1, "capacity": 1.25}),
    ],
)
def test_routing_follows_its_definition_everywhere(
    select: str, attrs: dict[str, float], gain: bool, bias: bool
) -> None:
    operands = [X, ROUTER, UP, DOWN, None, None, None, None, SCORE_BIAS if bias else None]
    given = [*operands, GAIN] if gain else operands if bias else operands[:4]
    (out,) = computed(moe, given, opset=18, activation="relu", select=select, **attrs)
    weights = _routed(select, gain=gain, bias=bias, **attrs)
    tokens = X.reshape(-1, D).astype(np.float64)
    each = [np.maximum(tokens @ UP[e].T, 0) @ DOWN[e].T * weights[:, e : e + 1] for e in range(E)]
    expected = sum(each)
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out.reshape(-1, R), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("best", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_experts_of_the_best_groups_are_asked(scoring: str, best: int, bias: bool) -> None:
    count, groups = 6, 3
    router, up, down = _floats(2, 7, count), _floats(count, F, D), _floats(count, R, F)
    added = _floats(count) if bias else np.zeros(count, np.float32)
    rest = [None, None, None, None, added] if bias else []
    (out,) = computed(
        moe, [X, router, up, down, *rest], opset=17, activation="relu", scoring=scoring,
        renormalize=True, routed_scale=2.5, select="groups", groups=groups, top_groups=2,
        group_best=best, top_k=3,
    )  # fmt: skip
    expected = np.zeros((2, 7, R))
    for i in np.ndindex(2, 7):
        logits = router[i].astype(np.float64)
        soft = np.exp(logits) / np.exp(logits).sum()
        score = soft if scoring == "softmax" else 1 / (1 + np.exp(-logits))
        ranked = (score + added).reshape(groups, -1)
        rated = [sorted(part)[-best:] for part in ranked]
        asked = sorted(range(groups), key=lambda g: -sum(rated[g]))[:2]
        allowed = [g * 2 + e for g in asked for e in range(2)]
        chosen = sorted(allowed, key=lambda e: -ranked.flat[e])[:3]
        for e in chosen:
            share = 2.5 * score[e] / score[chosen].sum()
            expected[i] += share * (down[e] @ np.maximum(up[e] @ X[i], 0))
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out, expected, atol=atol, rtol=0)


def test_a_gain_of_zeros_gives_every_chosen_expert_weight_one() -> None:
    operands = [X, ROUTER, UP, DOWN, None, None, None, None, None, np.zeros(E, np.float32)]
    (out,) = computed(moe, operands, opset=17, top_k=E, activation="relu")
    tokens = X.reshape(-1, D)
    expected = sum(np.maximum(tokens @ UP[e].T, 0) @ DOWN[e].T for e in range(E))
    atol = 64 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(out.reshape(-1, R), expected, atol=atol, rtol=0)


def test_top_p_takes_all_experts_at_one_and_one_expert_near_zero() -> None:
    sizes = []
    for threshold in (1e-9, 0.2, 0.4, 0.6, 0.8, 1.0):
        attrs = {"top_k": E, "scoring": "softmax", "renormalize": False, "routed_scale": 1.0,
                 "select": "top_p", "threshold": threshold, "capacity": 0.0}  # fmt: skip
        taken, _ = route(attrs, ROUTER.reshape(-1, E))
        sizes.append(taken.sum(-1).mean())
    assert sizes[0] == 1
    assert sizes[-1] == E
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_capacity_drops_what_the_formula_says(factor: float) -> None:
    # every token wants expert 0
    router = np.tile(np.arange(E)[::-1].astype(np.float32), (20, 1))
    attrs = {"top_k": 1, "scoring": "softmax", "renormalize": False, "routed_scale": 1.0,
             "select": "top_k", "threshold": 0.0, "capacity": factor}  # fmt: skip
    taken, weights = route(attrs, router)
    assert taken.sum() == int(np.ceil(factor * 20 / E))
    assert taken[: taken.sum(), 0].all()  # the first tokens
    assert (weights[~taken] == 0).all()


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"select": "top_p", "scoring": "sigmoid", "threshold": 0.5}, "sums probabilities"),
        ({"select": "top_p"}, "has to be positive"),
        ({"select": "expert_choice"}, "`capacity` is 0"),
        ({"select": "threshold", "scoring": "topk_softmax"}, "before the choice"),
        ({"widths": (3, 3)}, "`widths` is"),
        ({"select": "groups"}, "0 of 0 groups are asked"),
        ({"select": "groups", "groups": 2, "top_groups": 1}, "5 experts in 2 groups"),
    ],
)
def test_routing_refuses_what_does_not_go_together(attrs: dict[str, object], message: str) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        computed(moe, [X, ROUTER, UP, DOWN], top_k=2, **attrs)
