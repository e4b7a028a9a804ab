"""Mixture of experts: every token goes through the `top_k` experts that its router scores choose.

```
score  = scoring(router)                                  [*b, E]
chosen = the top_k largest of score (+ score_bias)        equal scores: the lower expert
weight = score of the chosen, renormalized if asked for; with a gain 1 + weight_gain * that
hidden = activation(gate_e x + gate_bias_e) * (up_e x + up_bias_e)     without gate: activation(up)
out    = sum over the chosen e of routed_scale * weight_e * (down_e hidden + down_bias_e)
```

`scoring` is `softmax` (over all experts, then top-k; Mixtral renormalizes, Switch does not),
`topk_softmax` (the softmax is over the chosen alone), `sigmoid` (DeepSeek-V3, whose bias
chooses but does not weigh), or `given`: the router's numbers are the weights, and at most `top_k`
of a token are not zero.

With a `limit` L, `min(gate, L)` goes into the activation, and what it multiplies is clipped to
[-L, L]; `up_offset` is added to that (gpt-oss: 7 and 1). Other `bounds`, and a norm of what an
expert gives: `regraft.ir.ops.moe_hidden`. With `weigh_input` the weight multiplies what an expert
reads, not what it gives (Llama 4).

`select` and `capacity` are other ways to choose: `regraft.ir.ops.moe_routing`. Experts of unequal
`widths` are filled up to the widest: the columns of `down` beyond an expert's width are zeros, and
need not be computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, floordiv, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, cast, linalg, logical, reduce, reshaping
from regraft.ir.ops.moe_hidden import (
    ACTIVATIONS,
    check_hidden,
    eval_hidden,
    eval_result,
    write_hidden,
    write_result,
)
from regraft.ir.ops.moe_routing import (
    SCORINGS,
    SELECTIONS,
    check_routing,
    mixes_tokens,
    route,
    write_routing,
)
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

__all__ = ["ACTIVATIONS", "OPS", "SCORINGS", "SELECTIONS", "moe", "route"]


def _infer(node: Node) -> Type:
    x, router, _, down = operands_of(node, 4)
    check_routing(node)
    check_hidden(node)
    if x.shape is None:
        return TensorType(x.dtype, None)
    if router.shape is not None:
        if len(router.shape) != len(x.shape):
            raise node.error("the router scores have one row per token")
        for a, b in zip(x.shape[:-1], router.shape[:-1], strict=True):
            same_size(node, a, b, "the tokens of x and of the router scores")
    _check_experts(node)
    _check_widths(node)
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


def _check_widths(node: Node) -> None:
    widths, up = node.attrs["widths"], operands_of(node, 4)[2]
    if not widths or up.shape is None:
        return
    experts, hidden = up.shape[:2]
    if len(widths) != experts or any(width > hidden for width in widths if width != hidden):
        raise node.error(
            f"`widths` is {list(widths)} for {experts} experts of {hidden} hidden channels"
        )


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
    weight_gain: Array | None,
) -> Array:
    attrs = c.attrs
    tokens = x.reshape(-1, x.shape[-1])
    scores = router.reshape(-1, router.shape[-1])
    taken, weights = route(attrs, scores, score_bias, weight_gain)
    # results of experts cancel: their sum is rounded once
    out = np.zeros((len(tokens), down.shape[1]))

    def project(rows: Array, weight: Array, bias: Array | None, expert: int) -> Array:
        result: Array = rows @ weight[expert].T
        return result if bias is None else result + bias[expert]

    for expert in range(up.shape[0]):
        token = np.flatnonzero(taken[:, expert])
        rows, share = tokens[token], weights[token, expert, None]
        if attrs["weigh_input"]:
            rows, share = rows * share, (share != 0).astype(x.dtype)
        hidden = project(rows, up, up_bias, expert)
        gates = None if gate is None else project(rows, gate, gate_bias, expert)
        hidden = eval_hidden(attrs, hidden, gates)
        given = eval_result(attrs, project(hidden, down, down_bias, expert))
        out[token] += share.astype(np.float64) * given
    return out.astype(x.dtype).reshape(*x.shape[:-1], down.shape[1])


def _flops(node: Node) -> DimLike | None:
    x, _, up, down = (value.shape for value in operands_of(node, 4))
    if x is None or up is None or down is None:
        return None
    inputs = 1 if node.inputs[4] is None else 2
    top_k: int = node.attrs["top_k"]
    per_token = inputs * x[-1] + down[1]
    widths = node.attrs["widths"]
    if widths:  # every expert as often as the others
        whole = 2 * top_k * sum(widths) * product(x[:-1]) * per_token
        return floordiv(whole, len(widths))
    return 2 * top_k * up[1] * product(x[:-1]) * per_token


def _axes(node: Node) -> str:
    """An expert cannot be dropped: the others would be chosen instead."""
    b = "*b!" if mixes_tokens(node.attrs) else "*b"
    f = "f!" if node.attrs["widths"] else "~f"
    o = "o!" if node.attrs["norm_epsilon"] else "o"
    weights = f"e! {f} ~d, e! {o} {f}, e! {f} ~d, e! {f}, e! {o}, e! {f}"
    return f"{b} ~d, {b} e!, {weights}, e!, e! -> {b} {o}"


def _body(node: Node, b: Builder) -> Value:
    """Every expert computes every token; the weights of those not chosen are zero."""
    x, router, up, down = operands_of(node, 4)
    gate, up_bias, down_bias, gate_bias, score_bias, weight_gain = node.inputs[4:10]
    if x.shape is None or up.shape is None or down.shape is None or x.dtype is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    num, D, E = product(x.shape[:-1]), x.shape[-1], up.shape[0]
    scores = b.op(reshaping.reshape, router, shape=(num, E))
    weights = write_routing(node, b, scores, score_bias, weight_gain)
    if weights.dtype is not x.dtype:
        weights = b.op(cast.cast, weights, to=x.dtype)
    tokens = b.op(reshaping.reshape, x, shape=(1, num, D))
    attrs = node.attrs
    if attrs["weigh_input"]:
        tokens = b.op(arithmetic.mul, tokens, weights)

    def project(rows: Value, weight: Value, bias: Value | None) -> Value:
        turned = b.op(reshaping.transpose, weight, perm=(0, 2, 1))
        result = b.op(linalg.matmul, rows, turned)
        if bias is None:
            return result
        return b.op(arithmetic.add, result, b.op(reshaping.unsqueeze, bias, axes=(1,)))

    gates = None if gate is None else project(tokens, gate, gate_bias)
    hidden = write_hidden(attrs, b, project(tokens, up, up_bias), gates)
    each = write_result(attrs, b, project(hidden, down, down_bias))
    if not attrs["weigh_input"]:
        each = b.op(arithmetic.mul, each, weights)
    elif down_bias is not None or up_bias is not None or gate_bias is not None:
        # an expert with biases gives something for zeros
        zero = b.constant(0, x.dtype)
        each = b.op(logical.where, b.op(logical.equal, weights, zero), zero, each)
    total = b.op(reduce.reduce_sum, each, axes=(0,), keepdims=False)
    return b.op(reshaping.reshape, total, shape=(*x.shape[:-1], down.shape[1]))


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
        Operand("weight_gain", optional=True),  # [E], zeros give every chosen expert weight 1
    ),
    attrs=(
        Attr("top_k", AttrKind.INT),
        Attr("scoring", AttrKind.STR, "softmax"),
        Attr("renormalize", AttrKind.BOOL, False),
        Attr("routed_scale", AttrKind.FLOAT, 1.0),
        Attr("activation", AttrKind.STR, "silu"),
        Attr("select", AttrKind.STR, "top_k"),  # top_p, threshold, expert_choice, groups
        Attr("threshold", AttrKind.FLOAT, 0.0),
        Attr("groups", AttrKind.INT, 0),  # of experts, of equal size
        Attr("top_groups", AttrKind.INT, 0),
        Attr("group_best", AttrKind.INT, 1),  # experts whose scores a group is rated by
        Attr("capacity", AttrKind.FLOAT, 0.0),  # 0: an expert takes all that choose it
        Attr("widths", AttrKind.INTS, ()),  # hidden channels by expert; (): all
        Attr("limit", AttrKind.FLOAT, 0.0),
        Attr("up_offset", AttrKind.FLOAT, 0.0),
        Attr("bounds", AttrKind.STR, "clip"),  # clip_after, soft
        Attr("gate_limit", AttrKind.FLOAT, 0.0),  # 0: `limit`
        Attr("norm_epsilon", AttrKind.FLOAT, 0.0),  # 0: results of experts are not normalized
        Attr("weigh_input", AttrKind.BOOL, False),
    ),
    traits=Trait.PURE | Trait.DISCRETE,
    axes=_axes,
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=_body,
)

OPS: tuple[OpSpec, ...] = (moe,)
