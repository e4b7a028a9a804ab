"""Mixture of experts: every token goes through the `top_k` experts that its router scores choose.

```
score  = scoring(router)                                  [*b, E]
chosen = the top_k largest of score (+ score_bias)        equal scores: the lower expert
weight = score of the chosen, renormalized if asked for, times routed_scale
hidden = activation(gate_e x + gate_bias_e) * (up_e x + up_bias_e)     without gate: activation(up)
out    = sum over the chosen e of weight_e * (down_e hidden + down_bias_e)
```

`scoring` is `softmax` (over all experts, then top-k; Mixtral renormalizes, Switch does not),
`topk_softmax` (the softmax is over the chosen alone), or `sigmoid` (DeepSeek-V3, whose bias
chooses but does not weigh).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    linalg,
    reduce,
    reshaping,
    selecting,
    softmax,
)
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

SCORINGS = ("softmax", "topk_softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class _Call:
    """What an activation's `eval` reads of its context."""

    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExpertActivation:
    """What is applied to hidden channels.

    Args:
        op: The operator.
        attrs: Its attributes.
        squared: Whether its result is squared.
    """

    op: OpSpec
    attrs: Mapping[str, Any]
    squared: bool = False

    def eval(self, x: Array) -> Array:
        """Returns f[*b, F] of f[*b, F]."""
        if self.op.eval is None:
            raise AssertionError(f"`{self.op.name}` has no numpy meaning")
        result: Array = self.op.eval(_Call(self.attrs), x)
        return result * result if self.squared else result

    def write(self, b: Builder, x: Value) -> Value:
        """Writes it in canonical operators."""
        result = b.op(self.op, x, **self.attrs)
        return b.op(arithmetic.mul, result, result) if self.squared else result


ACTIVATIONS: dict[str, ExpertActivation] = {
    "relu": ExpertActivation(activation.relu, {}),
    "relu2": ExpertActivation(activation.relu, {}, squared=True),
    "silu": ExpertActivation(activation.swish, {"alpha": 1.0}),
    "quick_gelu": ExpertActivation(activation.swish, {"alpha": 1.702}),
    "gelu": ExpertActivation(activation.gelu, {"tanh": False}),
    "gelu_tanh": ExpertActivation(activation.gelu, {"tanh": True}),
    "hard_swish": ExpertActivation(activation.hard_swish, {}),
    "sigmoid": ExpertActivation(activation.sigmoid, {}),
}
"""By the names that recognition gives them."""


def _infer(node: Node) -> Type:
    x, router, _, down = operands_of(node, 4)
    attrs = node.attrs
    for name, options in (("scoring", SCORINGS), ("activation", tuple(ACTIVATIONS))):
        if attrs[name] not in options:
            raise node.error(f"`{name}` is `{attrs[name]}`", hint=f"one of {', '.join(options)}")
    if x.shape is None:
        return TensorType(x.dtype, None)
    if router.shape is not None:
        if len(router.shape) != len(x.shape):
            raise node.error("the router scores have one row per token")
        for a, b in zip(x.shape[:-1], router.shape[:-1], strict=True):
            same_size(node, a, b, "the tokens of x and of the router scores")
    _check_experts(node)
    out = node.fresh_dim(0, len(x.shape) - 1) if down.shape is None else down.shape[1]
    return TensorType(x.dtype, (*x.shape[:-1], out))


def _check_experts(node: Node) -> None:
    x, router, up, down = operands_of(node, 4)
    for value, name in ((up, "up"), (down, "down"), (node.inputs[4], "gate")):
        if value is None or value.shape is None:
            continue
        if len(value.shape) != 3:
            raise node.error(f"`{name}` has rank {len(value.shape)}", hint="[experts, out, in]")
        if router.shape is not None:
            same_size(node, value.shape[0], router.shape[-1], f"the experts of `{name}`")
        if name == "down" and up.shape is not None:
            same_size(node, value.shape[2], up.shape[1], "the hidden channels of `up` and `down`")
        elif name != "down" and x.shape is not None:
            same_size(node, value.shape[2], x.shape[-1], f"the channels of x and `{name}`")


def route(attrs: Mapping[str, Any], router: Array, bias: Array | None) -> tuple[Array, Array]:
    """Returns (experts, weights), each [tokens, top_k]."""
    match attrs["scoring"]:
        case "sigmoid":
            scores = 1 / (1 + np.exp(-router))
        case "softmax":
            scores = softmax.stable_softmax(router)
        case _:
            scores = router
    ranked = scores if bias is None else scores + bias
    chosen = np.argsort(-ranked, axis=-1, kind="stable")[:, : attrs["top_k"]]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if attrs["scoring"] == "topk_softmax":
        weights = softmax.stable_softmax(weights)
    if attrs["renormalize"]:
        weights = weights / weights.sum(-1, keepdims=True)
    return chosen, weights * attrs["routed_scale"]


def _eval(
    c: Any,
    x: Array,
    router: Array,
    up: Array,
    down: Array,
    gate: Array | None,
    up_bias: Array | None,
    down_bias: Array | None,
    gate_bias: Array | None,
    score_bias: Array | None,
) -> Array:
    attrs = c.attrs
    tokens = x.reshape(-1, x.shape[-1])
    chosen, weights = route(attrs, router.reshape(-1, router.shape[-1]), score_bias)
    act = ACTIVATIONS[attrs["activation"]]
    out = np.zeros((len(tokens), down.shape[1]), x.dtype)

    def project(rows: Array, weight: Array, bias: Array | None, expert: int) -> Array:
        result: Array = rows @ weight[expert].T
        return result if bias is None else result + bias[expert]

    for expert in range(up.shape[0]):
        token, slot = np.nonzero(chosen == expert)
        rows = tokens[token]
        hidden = project(rows, up, up_bias, expert)
        if gate is None:
            hidden = act.eval(hidden)
        else:
            hidden = act.eval(project(rows, gate, gate_bias, expert)) * hidden
        out[token] += weights[token, slot, None] * project(hidden, down, down_bias, expert)
    return out.reshape(*x.shape[:-1], down.shape[1])


def _flops(node: Node) -> DimLike | None:
    x, _, up, down = (value.shape for value in operands_of(node, 4))
    if x is None or up is None or down is None:
        return None
    inputs = 1 if node.inputs[4] is None else 2
    top_k: int = node.attrs["top_k"]
    per_token = up[1] * (inputs * x[-1] + down[1])
    return 2 * top_k * product(x[:-1]) * per_token


def _body(node: Node, b: Builder) -> Value:
    """Every expert computes every token; the weights of those not chosen are zero."""
    x, router, up, down = operands_of(node, 4)
    gate, up_bias, down_bias, gate_bias, score_bias = node.inputs[4:9]
    if x.shape is None or up.shape is None or down.shape is None or x.dtype is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    num, D, E = product(x.shape[:-1]), x.shape[-1], up.shape[0]
    weights = _dense_weights(node, b, b.op(reshaping.reshape, router, shape=(num, E)), score_bias)
    tokens = b.op(reshaping.reshape, x, shape=(1, num, D))

    def project(rows: Value, weight: Value, bias: Value | None) -> Value:
        turned = b.op(reshaping.transpose, weight, perm=(0, 2, 1))
        result = b.op(linalg.matmul, rows, turned)
        if bias is None:
            return result
        return b.op(arithmetic.add, result, b.op(reshaping.unsqueeze, bias, axes=(1,)))

    act = ACTIVATIONS[node.attrs["activation"]]
    hidden = project(tokens, up, up_bias)
    if gate is None:
        hidden = act.write(b, hidden)
    else:
        hidden = b.op(arithmetic.mul, act.write(b, project(tokens, gate, gate_bias)), hidden)
    each = b.op(arithmetic.mul, project(hidden, down, down_bias), weights)
    total = b.op(reduce.reduce_sum, each, axes=(0,), keepdims=False)
    return b.op(reshaping.reshape, total, shape=(*x.shape[:-1], down.shape[1]))


def _dense_weights(node: Node, b: Builder, router: Value, bias: Value | None) -> Value:
    """Returns the weight of every expert for every token, [E, tokens, 1]."""
    attrs, dtype = node.attrs, router.dtype
    if dtype is None or router.shape is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    scores = router
    if attrs["scoring"] == "sigmoid":
        scores = b.op(activation.sigmoid, router)
    elif attrs["scoring"] == "softmax":
        scores = b.op(softmax.softmax, router, axis=-1)
    ranked = scores if bias is None else b.op(arithmetic.add, scores, bias)
    _, chosen = b.multi(selecting.top_k, ranked, k=attrs["top_k"], axis=-1)
    on_off = b.constant(np.array([0, 1]), dtype)
    # [tokens, top_k, E]
    selected = b.op(selecting.one_hot, chosen, None, on_off, depth=router.shape[1], axis=-1)
    rows = b.op(reshaping.unsqueeze, scores, axes=(1,))
    picked = b.op(arithmetic.mul, selected, rows)
    weights = b.op(reduce.reduce_sum, picked, axes=(2,), keepdims=True)  # [tokens, top_k, 1]
    if attrs["scoring"] == "topk_softmax":
        weights = b.op(softmax.softmax, weights, axis=1)
    if attrs["renormalize"]:
        total = b.op(reduce.reduce_sum, weights, axes=(1,), keepdims=True)
        weights = b.op(arithmetic.div, weights, total)
    if attrs["routed_scale"] != 1:
        weights = b.op(arithmetic.mul, weights, b.constant(attrs["routed_scale"], dtype))
    dense = b.op(
        reduce.reduce_sum, b.op(arithmetic.mul, selected, weights), axes=(1,), keepdims=True
    )
    return b.op(reshaping.transpose, dense, perm=(2, 0, 1))


moe = OpSpec(
    name="moe",
    source="Mixtral, Switch and DeepSeek-V3 routing over gated or plain feed-forward experts",
    operands=(
        Operand("x"),  # [*b, D]
        Operand("router"),  # [*b, E], scores before softmax or sigmoid
        Operand("up"),  # [E, F, D]
        Operand("down"),  # [E, O, F]
        Operand("gate", optional=True),  # [E, F, D]
        Operand("up_bias", optional=True),  # [E, F]
        Operand("down_bias", optional=True),  # [E, O]
        Operand("gate_bias", optional=True),  # [E, F]
        Operand("score_bias", optional=True),  # [E], chooses but does not weigh
    ),
    attrs=(
        Attr("top_k", AttrKind.INT),
        Attr("scoring", AttrKind.STR, "softmax"),
        Attr("renormalize", AttrKind.BOOL, False),
        Attr("routed_scale", AttrKind.FLOAT, 1.0),
        Attr("activation", AttrKind.STR, "silu"),
    ),
    traits=Trait.PURE | Trait.DISCRETE,
    # an expert cannot be dropped: the others would be chosen instead
    axes="*b ~d, *b e!, e! ~f ~d, e! o ~f, e! ~f ~d, e! ~f, e! o, e! ~f, e! -> *b o",
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=_body,
)

OPS: tuple[OpSpec, ...] = (moe,)
