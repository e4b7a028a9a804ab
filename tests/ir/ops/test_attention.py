from __future__ import annotations

import numpy as np
import pytest

from regraft.ir.dims import Dim
from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph
from regraft.ir.ops.attention import attention
from regraft.ir.ops.linear_attention import RULES, linear_attention
from regraft.ir.ops.rotary import rotary_embedding
from regraft.ir.types import DType, TensorType
from regraft.soundness import Sample, attack, bools, floats, ints
from tests.ir.ops.both_ways import computed

B, H, G, S, T, D, E = 2, 4, 2, 3, 6, 5, 7
RNG = np.random.default_rng(0)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = _floats(B, H, S, D), _floats(B, H // G, T, D), _floats(B, H // G, T, E)
SINKS = _floats(H)
MASK = _floats(B, 1, S, T)
KEEP = RNG.integers(0, 2, (B, H, S, T)).astype(bool)
ALL_HIDDEN = np.where(np.arange(S)[:, None] == 1, -np.inf, 0).astype(np.float32) * np.ones((S, T))
LENGTHS = np.array([4, 6])

VARIANTS = {
    "plain": ({}, {}),
    "causal, first aligned": ({}, {"causal_offset": 0}),
    "causal, last aligned": ({}, {"causal_offset": T - S}),
    "before the first key": ({}, {"causal_offset": -2}),
    "window": ({}, {"causal_offset": 2, "window": (1, 1)}),
    "window without keys": ({}, {"causal_offset": 9, "window": (1, 0)}),
    "cap": ({"mask": MASK}, {"softcap": 0.7}),
    "cap after mask": (
        {"mask": MASK + ALL_HIDDEN.astype(np.float32)},
        {"softcap": 0.7, "mask_before_softcap": True},
    ),
    "float mask": ({"mask": MASK}, {"causal_offset": 1}),
    "bool mask": ({"mask": KEEP}, {"causal_offset": 1}),
    "hidden row": ({"mask": ALL_HIDDEN.astype(np.float32)}, {}),
    "lengths": ({"lengths": LENGTHS}, {}),
    "lengths, one offset each": ({"lengths": LENGTHS, "offset": LENGTHS - S}, {}),
    "one offset each": ({"offset": np.array([0, 3])}, {}),
    "one offset": ({"offset": np.array(2)}, {"window": (2, 0)}),
    "sinks": ({"sinks": SINKS, "mask": ALL_HIDDEN.astype(np.float32)}, {}),
    "sinks, causal": ({"sinks": SINKS}, {"causal_offset": -1}),
    "f64 softmax": ({}, {"softmax_dtype": DType.F64}),
}


def _reference(extra: dict, attrs: dict) -> np.ndarray:
    """One query at a time, straight from the definition."""
    out = np.zeros((B, H, S, E))
    mask, lengths, sinks = (extra.get(k) for k in ("mask", "lengths", "sinks"))
    offset = extra.get("offset", attrs.get("causal_offset"))
    left, right = attrs.get("window", (-1, 0))
    cap = attrs.get("softcap", 0)
    for b, h, s in np.ndindex(B, H, S):
        terms = []
        for t in range(T):
            score = 0.3 * float(Q[b, h, s] @ K[b, h // G, t])
            own = None if mask is None else np.broadcast_to(mask, (B, H, S, T))[b, h, s, t]
            is_float = mask is not None and mask.dtype != bool
            if is_float and attrs.get("mask_before_softcap"):
                score += own
            if cap:
                score = cap * np.tanh(score / cap)
            if is_float and not attrs.get("mask_before_softcap"):
                score += own
            visible = own is None or bool(own > -np.inf if is_float else own)
            if lengths is not None:
                visible &= t < lengths[b]
            if offset is not None:
                p = s + (offset[b] if np.ndim(offset) else offset)
                visible &= (left < 0 or t >= p - left) and (right < 0 or t <= p + right)
            if visible:
                terms.append((np.exp(score), V[b, h // G, t]))
        total = sum(w for w, _ in terms) + (np.exp(sinks[h]) if sinks is not None else 0)
        if terms:
            out[b, h, s] = sum(w * v for w, v in terms) / total
    return out


@pytest.mark.parametrize("opset", [13, 23, 24])
@pytest.mark.parametrize("name", VARIANTS)
def test_attention_follows_its_definition_everywhere(name: str, opset: int) -> None:
    extra, attrs = VARIANTS[name]
    operands = [Q, K, V, *(extra.get(k) for k in ("mask", "lengths", "sinks", "offset"))]
    (out,) = computed(attention, operands, opset=opset, scale=0.3, kv_groups=G, **attrs)
    # 12 products and exponentials of size about 1
    np.testing.assert_allclose(out, _reference(extra, attrs), atol=64 * np.finfo(np.float32).eps)


def test_attention_hidden_queries_give_zeros() -> None:
    (out,) = computed(attention, [Q, K, V], scale=1.0, kv_groups=G, causal_offset=-2)
    assert (out[:, :, :2] == 0).all()
    assert (out[:, :, 2] == np.repeat(V[:, :, 0], G, axis=1)).all()


def test_attention_with_symbolic_batch_is_emitted() -> None:
    operands = [Q, K, V, None, LENGTHS, SINKS, LENGTHS - S]
    computed(attention, operands, symbolic=True, scale=0.3, kv_groups=G)


def _typed(*types: TensorType | None, **attrs: object) -> TensorType:
    graph = Graph()
    inputs = [None if t is None else graph.add_input(None, t) for t in types]
    return graph.create(attention, inputs, {"scale": 1.0, **attrs}).output.type  # type: ignore[return-value]


def test_attention_keeps_symbols() -> None:
    b, s, p = (Dim.of(name) for name in "bsp")
    q = TensorType(DType.F16, (b, 8, s, 64))
    kv = TensorType(DType.F16, (b, 2, p + s, 64))
    assert _typed(q, kv, kv, kv_groups=4, causal_offset=p) == q
    assert _typed(TensorType(DType.F16, None), kv, kv) == TensorType(DType.F16, None)


def test_attention_refuses_heads_that_do_not_fit() -> None:
    q, kv = TensorType(DType.F32, (1, 8, 3, 4)), TensorType(DType.F32, (1, 3, 5, 4))
    with pytest.raises(TypeInferenceError, match="query heads and kv_groups x key heads"):
        _typed(q, kv, kv, kv_groups=2)
    with pytest.raises(TypeInferenceError, match="rank 3"):
        _typed(TensorType(DType.F32, (1, 3, 32)), kv, kv)


@pytest.mark.parametrize(
    "mask", [(S, T), (1, T), (H, S, T), (B, H, S, T), (B, 1, 1, T), (1, H, 1, 1), (T,)]
)
def test_attention_rule_holds_for_every_mask(mask: tuple[int, ...]) -> None:
    operands = (floats(B, H, S, D), floats(B, H // G, T, D), floats(B, H // G, T, E))
    attrs = {"scale": 0.3, "kv_groups": G}
    reports = [
        attack(attention, Sample((*operands, floats(*mask), None, floats(H), None), attrs)),
        attack(attention, Sample((*operands, bools(*mask), ints(B, low=1), None, ints(B)), attrs)),
    ]
    assert [report.broken for report in reports] == [[], []]
    assert reports[0].tested == {"b", "h", "g", "s", "d", "e"}
    assert reports[1].tested == {"b", "h", "g", "d", "e"}  # positions fix the queries


@pytest.mark.parametrize("opset", [13, 23])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_size", [None, 4])
@pytest.mark.parametrize("table", ["[S]", "[B, S]", "positions"])
def test_rotary_turns_pairs(
    opset: int, interleaved: bool, rotary_size: int | None, table: str
) -> None:
    x, half = _floats(B, H, S, 8), (rotary_size or 8) // 2
    positions = RNG.integers(0, 9, (B, S))
    angles = _floats(*{"[S]": (S,), "[B, S]": (B, S), "positions": (9,)}[table], half)
    operands = [x, np.cos(angles), np.sin(angles), positions if table == "positions" else None]
    (out,) = computed(
        rotary_embedding, operands, opset=opset, interleaved=interleaved, rotary_size=rotary_size
    )
    if table == "positions":
        angles = angles[positions]
    angles = np.broadcast_to(angles, (B, S, half))[:, None]
    size = 2 * half
    pairs = (
        (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(half), slice(half, size))
    )
    before = x[..., pairs[0]] + 1j * x[..., pairs[1]]
    after = out[..., pairs[0]] + 1j * out[..., pairs[1]]
    np.testing.assert_allclose(after, before * np.exp(1j * angles), atol=1e-6)
    assert (out[..., size:] == x[..., size:]).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("with_state", [False, True])
def test_linear_attention_body_and_states_chain(rule: str, with_state: bool) -> None:
    q, k = _floats(B, H, S, D), _floats(B, H // G, S, D)
    v = _floats(B, H // G, S, E)
    state = _floats(B, H // G, D, E) if with_state else None
    decay = -np.abs(_floats(B, H // G, S, D)) if "gated" in rule else None
    beta = np.abs(_floats(B, 1, S, 1)) if "delta" in rule else None
    attrs = {"rule": rule, "scale": 0.4, "kv_groups": G}
    out, last = computed(linear_attention, [q, k, v, state, decay, beta], opset=17, **attrs)
    # two calls, the second one continuing from the state of the first, are one call
    cut = [[None if x is None else x[:, :, part] for x in (q, k, v, decay, beta)]
           for part in (slice(0, 2), slice(2, S))]  # fmt: skip
    first, middle = computed(linear_attention, [*cut[0][:3], state, *cut[0][3:]], **attrs)
    second, end = computed(linear_attention, [*cut[1][:3], middle, *cut[1][3:]], **attrs)
    np.testing.assert_allclose(np.concatenate([first, second], 2), out, atol=1e-5)
    np.testing.assert_allclose(end, last, atol=1e-5)


def test_linear_attention_says_what_a_rule_needs() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 2, 3, 4)))
    with pytest.raises(TypeInferenceError, match="rule `delta` needs `beta`"):
        graph.create(linear_attention, [x, x, x], {"rule": "delta", "scale": 1.0})
