"""What attention can become: one table, by the option `method`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from regraft.ir.dims import known_equal
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    attention,
    functions,
    linalg,
    linear_attention,
    norm,
    reduce,
    reshaping,
    rotary,
)
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.passes.linearization.features import MAPS, LearnedMap, before_map, behind_map
from regraft.passes.linearization.inline import inline
from regraft.passes.linearization.place import Built, Place
from regraft.passes.linearization.soft import soft
from regraft.passes.linearization.weights import log_weights

Merge = Literal["lolcats", "lse", "share"]

_EPSILON = 1e-6
_FIRST_SHARE = 0.1
"""Share of the window to begin with: LoLCATs begins at sigmoid(-2.197)."""
_GATE_SCALE = 1 / 16


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a method; those that it has no use for are at 0."""

    features: int = 0
    window: int = 0
    merge: Merge = "share"
    landmarks: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """One form.

    Args:
        name: As the option `method` has it.
        about: What the weights become, for the documentation.
        build: Builds what replaces the result of an attention.
        misfit: Why it does not fit, or "".
        has_window: Whether a window of softmax can stand beside it.
        source: The paper.
    """

    name: str
    about: str
    build: Callable[[Place, Options], Built]
    misfit: Callable[[Node], str]
    has_window: bool = False
    source: str = ""


def _mapped(made: LearnedMap, place: Place, options: Options) -> Built:
    """Features over their sum; with a window, both branches under one sum."""
    b, node = place.b, place.node
    q, k = (before_map(place, which, made, options.features) for which in "qk")
    visible = place.visible()
    fq, fk = (behind_map(place, made, x) for x in (q, k))
    logs = log_weights(place, fq, fk, visible)
    v = place.operand("v")
    if visible is None:
        linear = b.op(
            linear_attention.linear_attention, q, k, v, rule="linear", scale=1.0,
            feature_map=made.feature_map, normalizer="sum", epsilon=_EPSILON,
            kv_groups=place.kv_groups, causal=place.is_causal,
        )  # fmt: skip
    else:
        # hidden keys have no features at all: the map stands before the operator
        linear = b.op(
            linear_attention.linear_attention, fq, place.shown(fk, visible), v, rule="linear",
            scale=1.0, normalizer="sum", epsilon=_EPSILON, kv_groups=place.kv_groups,
            causal=place.is_causal,
        )  # fmt: skip
    if not options.window:
        return Built(linear, linear, logs, place.trained)
    transferred = place.trained
    gain = _gain(place, options.merge)
    out = b.op(
        hybrid_attention, place.operand("q"), place.operand("k"), v, fq, fk, gain, visible,
        scale=node.attrs["scale"], window=options.window, kv_groups=place.kv_groups,
        merge=options.merge,
    )  # fmt: skip
    return Built(out, linear, logs, transferred)


def _gain(place: Place, merge: Merge) -> Value:
    """Returns the learned factor of the window of every head, [H]."""
    b = place.b
    if merge == "lolcats":
        share = np.full(place.heads, np.log(_FIRST_SHARE / (1 - _FIRST_SHARE)))
        return b.op(activation.sigmoid, place.learned("window", share))
    return b.op(functions.exp, place.learned("window", np.zeros(place.heads)))


def _unrotated(place: Place, which: str) -> tuple[Value, Node | None]:
    """Returns queries or keys before their rotary embedding, and that operator."""
    x = place.operand(which)
    made = x.producer
    if made is None or made.op is not rotary.rotary_embedding:
        return x, None
    before = made.inputs[0]
    return (x, None) if before is None else (before, made)


def slopes(heads: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Returns the decay of every head, as in lightning attention: 2^(-8 h / H), h from 1."""
    return 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)


def _decays(place: Place) -> Value:
    """Returns fixed logarithms of decays, one per key head, [1, K, 1, 1]."""
    part = place.part
    found = slopes(place.kv_heads) if part is None else slopes(part.count)[list(part.heads)]
    return place.b.constant(-found.reshape(1, -1, 1, 1), place.dtype)


def _normed(place: Place, x: Value) -> Value:
    """Returns rows of mean square 1, times a learned gain per head and channel."""
    b = place.b
    E = place.value_size
    ones = b.constant(np.ones(E), place.dtype)
    unit = b.op(norm.rms_norm, x, ones, axis=-1, epsilon=1e-6)
    gain = place.learned("gain", np.ones((place.heads, E)))
    return b.op(arithmetic.mul, unit, b.op(reshaping.reshape, gain, shape=(1, place.heads, 1, E)))


def _supra(place: Place, options: Options) -> Built:
    """relu(W x + b) before the rotary embedding, a fixed decay, a norm and no denominator."""
    b, rows = place.b, []
    made = MAPS["t2r"]
    for which in "qk":
        x, turned = _unrotated(place, which)
        inner = Place(place.node, place.number, b, part=place.part)
        mapped = behind_map(place, made, _learned_product(inner, which, x, made))
        place.trained += inner.trained
        if turned is not None:
            mapped = b.op(rotary.rotary_embedding, mapped, *turned.inputs[1:], **turned.attrs)
        rows.append(mapped)
    return _decayed(place, rows[0], rows[1], _decays(place))


def _learned_product(place: Place, which: str, x: Value, made: LearnedMap) -> Value:
    heads, size = (place.heads if which == "q" else place.kv_heads), place.size
    eye = np.broadcast_to(np.eye(size), (heads, size, size))
    weight = place.learned(f"{which}_features", eye)
    found = place.b.op(
        linalg.matmul, x, place.b.op(reshaping.reshape, weight, shape=(1, heads, size, size))
    )
    if made.has_bias:
        bias = place.learned(f"{which}_features_bias", np.zeros((heads, size)))
        lined = place.b.op(reshaping.reshape, bias, shape=(1, heads, 1, size))
        found = place.b.op(arithmetic.add, found, lined)
    return found


def _decayed(place: Place, q: Value, k: Value, decay: Value) -> Built:
    """A recurrence with decay whose rows are normed."""
    made = place.b.op(
        linear_attention.linear_attention, q, place.shown(k, place.visible()),
        place.operand("v"), None, decay, rule="gated", scale=place.node.attrs["scale"],
        kv_groups=place.kv_groups,
    )  # fmt: skip
    out = _normed(place, made)
    return Built(out, out, None, place.trained)


def _lightning(place: Place, options: Options) -> Built:
    """silu(W x), a fixed decay per head, a norm and no denominator."""
    b, rows = place.b, []
    for which in "qk":
        x = before_map(place, which, LearnedMap("silu", "none"), options.features)
        rows.append(b.op(arithmetic.mul, x, b.op(activation.sigmoid, x)))
    return _decayed(place, rows[0], rows[1], _decays(place))


def _liger(place: Place, options: Options) -> Built:
    """No new weights: softmax features without positions, gates from the keys, half a window."""
    b, node = place.b, place.node
    (q, _), (k, _) = (_unrotated(place, which) for which in "qk")
    visible = place.visible()
    pooled = b.op(reduce.reduce_mean, k, axes=(3,), keepdims=True)
    scale = b.constant(-_GATE_SCALE, place.dtype)
    # logsigmoid(x) = -softplus(-x)
    gate = b.op(arithmetic.mul, b.op(activation.softplus, b.op(arithmetic.neg, pooled)), scale)
    build = FEATURE_MAPS["softmax"].build
    far = b.op(
        linear_attention.linear_attention, build(b, q), place.shown(build(b, k), visible),
        place.operand("v"), None, gate, rule="gated", scale=1.0, normalizer="sum",
        epsilon=_EPSILON, kv_groups=place.kv_groups,
    )  # fmt: skip
    if not options.window:
        return Built(far, far, None, ())
    near = b.op(attention.attention, *node.inputs, **{**node.attrs, "window": (
        options.window - 1, 0)})  # fmt: skip
    half = b.constant(0.5, place.dtype)
    out = b.op(arithmetic.mul, b.op(arithmetic.add, near, far), half)
    return Built(out, far, None, ())


def _window(place: Place, options: Options) -> Built:
    node = place.node
    attrs = {**node.attrs, "window": (options.window - 1, 0)}
    out = place.b.op(attention.attention, *node.inputs, **attrs)
    return Built(out, out, None, ())


def _inline(place: Place, options: Options) -> Built:
    out, linear = inline(place)
    return Built(out, linear, None, place.trained)


def _soft(place: Place, options: Options) -> Built:
    out = soft(place, options.landmarks)
    return Built(out, out, None, place.trained)


def _any(node: Node) -> str:
    return ""


def _causal(node: Node) -> str:
    if node.attrs["causal_offset"] is None or node.attrs["window"][1] != 0:
        return "it is not causal, and a decay needs an order"
    return ""


def _whole(node: Node) -> str:
    if node.attrs["causal_offset"] is not None and node.attrs["window"] != (-1, -1):
        return "it is causal, and this form sees all keys at once"
    if node.operand("mask") is not None or node.operand("kv_lengths") is not None:
        return "it has padding, and this form counts every key"
    q, k = node.inputs[:2]
    if q is None or k is None or not known_equal((q.shape or (0,))[2], (k.shape or (1,))[2]):
        return "its queries are not its keys' tokens"
    return ""


def _square(node: Node) -> str:
    k = node.inputs[1]
    if k is None or not isinstance((k.shape or ())[2], int):
        return "its number of tokens is known at run time only: landmarks are pooled from them"
    if node.attrs["kv_groups"] != 1:
        return "its heads share keys: the form has one kind of tokens per head"
    return _whole(node)


_LOLCATS = "Zhang et al., LoLCATs: On Low-Rank Linearizing of Large Language Models, 2024"

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "hedgehog", "[softmax(W x), softmax(-W x)] over their sum",
            partial(_mapped, MAPS["hedgehog"]), _any, True, _LOLCATS,
        ),
        Method(
            "t2r", "relu(W x + b) over their sum", partial(_mapped, MAPS["t2r"]), _any, True,
            "Kasai et al., Finetuning Pretrained Transformers into RNNs, 2021",
        ),
        Method(
            "elu", "elu(x) + 1 over their sum; nothing is learned",
            partial(_mapped, MAPS["elu"]), _any, True,
            "Katharopoulos et al., Transformers are RNNs, 2020",
        ),
        Method(
            "exp", "exp(W x) over their sum", partial(_mapped, MAPS["exp"]), _any, True,
            "Zhang et al., The Hedgehog and the Porcupine, 2024",
        ),
        Method(
            "taylor", "1 + s + s^2 / 2 of s = (W q).(W k), over their sum",
            partial(_mapped, MAPS["taylor"]), _any, True,
            "Arora et al., Simple Linear Attention Language Models, 2024",
        ),
        Method(
            "supra", "relu(W x + b) before positions, decay per head, a norm", _supra, _causal,
            source="Mercat et al., Linearizing Large Language Models, 2024",
        ),
        Method(
            "liger", "softmax(x) without positions, gates from the keys, half a window",
            _liger, _causal, True,
            "Lan et al., Liger: Linearizing LLMs to Gated Recurrent Structures, 2025",
        ),
        Method(
            "lightning", "silu(W x), decay per head, a norm", _lightning, _causal,
            source="MiniMax, MiniMax-M1: Scaling Test-Time Compute with Lightning Attention, 2025",
        ),
        Method(
            "window", "softmax over the last keys alone; nothing is learned", _window, _causal,
            True, "Beltagy et al., Longformer, 2020",
        ),
        Method(
            "inline", "(1 + s - mean of s) / n of s = (W q).(W k), and a local residual",
            _inline, _whole,
            source="Han et al., Bridging the Divide: Reconsidering Softmax and Linear Attention, "
            "2024",
        ),
        Method(
            "soft", "exp(-|x - y|^2 / 2) of queries alone, through pooled landmarks",
            _soft, _square,
            source="Lu et al., Softmax-free Linear Transformers, 2024",
        ),
    )
}  # fmt: skip
