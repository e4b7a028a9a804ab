"""Emitter of mixture of experts.

ONNX Runtime has a kernel that runs the chosen experts only: plain ones with ReLU, SiLU or
tanh-GELU, and gated ones with a swish. Its gated form reads gate and value in turns, row by row of
one matrix, and differs between releases in what it takes for granted: alpha, beta and the limit
are always written. Sigmoid scores become logits by their logarithm, as the kernel's softmax is
their share then. Anything else is written in standard operators: erf-GELU, biases that choose but
do not weigh, given weights, capacities. There every expert gathers its tokens, which also takes
less time than the kernel where tokens are many (`legalize`, site `moe`); other targets compute
every expert for every token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.backends.onnx.experts_kernel import GATED, PLAIN, has_kernel, sizes_of
from regraft.backends.onnx.moe_gathered import gathered
from regraft.ir.graph import Node
from regraft.ir.ops import moe

_NO_LIMIT = float(np.finfo(np.float32).max)
_UP, _GATE, _SCORE_BIAS = 2, 4, 8

GATHERED_SINCE = 16
"""First opset whose ScatterND adds."""


def _is_gathered(node: Node, opset: int) -> bool:
    """Returns whether experts compute their own tokens alone: needs sums of scattered rows."""
    up = node.inputs[_UP]
    is_static = up is not None and up.shape is not None and isinstance(up.shape[0], int)
    return opset >= GATHERED_SINCE and is_static and not has_kernel(node)


def _is_inlined(node: Node, opset: int, profile: str) -> bool:
    return profile != "ort-cpu" or not (has_kernel(node) or _is_gathered(node, opset))


def _moe(e: EmitContext) -> None:
    node = e.node
    if _is_inlined(node, e.opset, e.profile):
        e.inline()
        return
    if _is_gathered(node, e.opset):
        e.inline(gathered)
        return
    attrs, factors = node.attrs, []
    scores = e.name(node.inputs[1])
    # the softmax over the chosen is the renormalized softmax over all
    normalized = attrs["renormalize"] or attrs["scoring"] == "topk_softmax"
    if attrs["scoring"] == "sigmoid":
        # log sigmoid(x) = -softplus(-x); its softmax is each sigmoid's share of their sum
        if not normalized:
            axes = e.ints([-1])
            factors.append(e.op("ReduceSum", e.op("Sigmoid", scores), axes, keepdims=1))
        scores = e.op("Neg", e.op("Softplus", e.op("Neg", scores)))
    if attrs["routed_scale"] != 1:
        factors.append(e.const(attrs["routed_scale"], _dtype(node)))
    fields = {} if node.inputs[_GATE] is None else gated_fields(node)
    fields["normalize_routing_weights"] = normalized
    names = [e.name(node.inputs[0]), by_token(e, scores), *_weights(e)]
    emit_kernel(e, "MoE", names, fields, factors)


def gated_fields(node: Node) -> dict[str, Any]:
    """Returns the kernel's attributes for gated experts: all, as releases differ in theirs."""
    attrs = node.attrs
    return {
        "activation_type": "swiglu", "swiglu_fusion": 1,
        "activation_alpha": GATED[attrs["activation"]],
        "activation_beta": float(attrs["up_offset"]),
        "swiglu_limit": float(attrs["limit"]) or _NO_LIMIT,
    }  # fmt: skip


def by_token(e: EmitContext, scores: str) -> str:
    """Returns the scores of the node's tokens as [T, E], whatever their rank."""
    router = e.node.inputs[1]
    assert router is not None, "moe has scores"
    if router.rank != 3:
        return scores
    return e.op("Reshape", scores, e.ints([-1, (router.shape or (0,))[-1]]))


def emit_kernel(
    e: EmitContext, op_type: str, names: list[str], fields: dict[str, Any], factors: list[str]
) -> None:
    """Writes the runtime's kernel, and what its result is multiplied by.

    Args:
        e: A node that has the routing of `moe`.
        op_type: `MoE` or `QMoE`.
        names: The operands, "" for none.
        fields: Attributes besides k and the activation of plain experts.
        factors: The factors; none: the kernel's result is the node's.
    """
    attrs = e.node.attrs
    while not names[-1]:
        names.pop()
    fields = {"k": attrs["top_k"], **fields}
    if "activation_type" not in fields:
        fields["activation_type"] = PLAIN[attrs["activation"]]
    if not factors:
        e.emit(op_type, names, domain="com.microsoft", **fields)
        return
    result = e.op(op_type, *names, domain="com.microsoft", **fields)
    for factor in factors[:-1]:
        result = e.op("Mul", result, factor)
    e.emit("Mul", [result, factors[-1]])


def _weights(e: EmitContext) -> list[str]:
    """Returns the names of the kernel's matrices and biases; of gated experts in turns."""
    inputs = e.node.inputs
    up, down, gate, up_bias, down_bias, gate_bias = (e.name(v) for v in inputs[_UP:_SCORE_BIAS])
    if not gate:
        return [up, up_bias, down, down_bias]
    sizes = sizes_of(e.node)
    assert sizes is not None, "the kernel is used where sizes are known"
    count, width, channels = sizes
    if up_bias or gate_bias:
        zero = "" if up_bias and gate_bias else e.op(
            "ConstantOfShape", e.ints([count, width]),
            value=onnx.numpy_helper.from_array(np.zeros(1, _dtype(e.node))),
        )  # fmt: skip
        up_bias = _in_turns(e, gate_bias or zero, up_bias or zero, [count, 2 * width])
    return [_in_turns(e, gate, up, [count, 2 * width, channels]), up_bias, down, down_bias]


def _in_turns(e: EmitContext, first: str, second: str, shape: list[Any]) -> str:
    """Returns rows of two tensors `[E, F, *]` in turns; the runtime folds what is constant."""
    axes = e.ints([2])
    pair = [e.op("Unsqueeze", name, axes) for name in (first, second)]
    return e.op("Reshape", e.op("Concat", *pair, axis=2), e.ints(shape))


def _dtype(node: Node) -> np.dtype[Any]:
    dtype = node.output.dtype
    assert dtype is not None, "the kernel is used for known types"
    return dtype.numpy


EMITS: tuple[Emit, ...] = (
    Emit(moe.moe, {13: _moe}, inlined=_is_inlined, raised={"ort-cpu": GATHERED_SINCE}),
)
