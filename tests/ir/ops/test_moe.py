from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.moe import ACTIVATIONS, SCORINGS, moe
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
    with pytest.raises(TypeInferenceError, match="given weights are neither"):
        scaled = [*inputs[:2], None, *inputs[3:]]
        scaled[2] = graph.add_input(None, TensorType(DType.F32, (E, F, D)))
        graph.create(moe, scaled, {"top_k": 1, "scoring": "given", "renormalize": True})
    with pytest.raises(TypeInferenceError, match="`scoring` is `tanh`"):
        graph.create(moe, inputs, {"top_k": 1, "scoring": "tanh"})
