"""Recurrences for ONNX Runtime: its kernels of linear attention and of causal convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from regraft.backends.onnx.ort_ops import merge_heads, split_heads
from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    causal_conv,
    cumulative,
    linear_attention,
    reduce,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]

_HEADS_OUTSIDE = (0, 2, 1, 3)
_END = np.iinfo(np.int64).max

_LINEAR = "linear"
"""The rule whose chunks are sometimes faster than the kernel: measured costs decide."""


def _infer(node: Node) -> tuple[Type, Type]:
    q, _, v = operands_of(node, 3)
    state, attrs = node.inputs[3], node.attrs
    if q.shape is None or v.shape is None:
        return TensorType(q.dtype, None), TensorType(q.dtype, None)
    heads, kv_heads = attrs["heads"], attrs["kv_heads"]
    D, E = exactdiv(q.shape[2], heads), exactdiv(v.shape[2], kv_heads)
    dtype = q.dtype if state is None else state.dtype
    return (
        TensorType(q.dtype, (*q.shape[:2], heads * E)),
        TensorType(dtype, (q.shape[0], kv_heads, D, E)),
    )


class _Canonical:
    """The attributes of `linear_attention` that stand for those of the flat form."""

    def __init__(self, c: Any) -> None:
        given = c.attrs
        self.attrs = {
            **linear_attention.linear_attention.defaults,
            "rule": given["rule"],
            "scale": given["scale"],
            "kv_groups": given["heads"] // given["kv_heads"],
        }


def _eval(
    c: Any,
    q: Array,
    k: Array,
    v: Array,
    state: Array | None,
    decay: Array | None,
    beta: Array | None,
) -> tuple[Array, Array]:
    heads, kv_heads = c.attrs["heads"], c.attrs["kv_heads"]
    evaluate = linear_attention.linear_attention.eval
    assert evaluate is not None, "linear_attention has a meaning"
    decay = None if decay is None else split_heads(decay, kv_heads)
    beta = None if beta is None else split_heads(beta, beta.shape[2])
    operands = (split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads))
    out, last = evaluate(_Canonical(c), *operands, state, decay, beta)
    return merge_heads(out), last


def _flops(node: Node) -> DimLike | None:
    q, k, v = (value.shape for value in operands_of(node, 3))
    if q is None or k is None or v is None:
        return None
    heads, kv_heads = node.attrs["heads"], node.attrs["kv_heads"]
    writes = 2 if "delta" in node.attrs["rule"] else 1
    states = product((*k, exactdiv(v[2], kv_heads)))
    reads = product((*q, exactdiv(v[2], kv_heads)))
    return 2 * (writes * states + reads) if heads else None


flat_linear_attention = OpSpec(
    name="ort.linear_attention",
    source="com.microsoft LinearAttention-1",
    operands=(
        Operand("q"),  # [B, T, heads * D]
        Operand("k"),  # [B, T, kv_heads * D]
        Operand("v"),  # [B, T, kv_heads * E]
        Operand("state", optional=True),  # [B, kv_heads, D, E]
        Operand("decay", optional=True),  # [B, T, kv_heads * D or kv_heads]
        Operand("beta", optional=True),  # [B, T, kv_heads or 1]
    ),
    results=("out", "new_state"),
    attrs=(
        Attr("rule", AttrKind.STR),
        Attr("scale", AttrKind.FLOAT),
        Attr("heads", AttrKind.INT),
        Attr("kv_heads", AttrKind.INT),
    ),
    infer=_infer,
    eval=_eval,
    flops=_flops,
)

channels_causal_conv = dataclasses.replace(
    causal_conv.causal_conv,
    name="ort.causal_conv",
    source="com.microsoft CausalConvWithState-1",
    axes=None,
)

OPS: tuple[OpSpec, ...] = (flat_linear_attention, channels_causal_conv)


def _is_known(node: Node) -> bool:
    q, k, v = operands_of(node, 3)
    shapes = [x.shape for x in (q, k, v)]
    if None in shapes or q.dtype is not DType.F32:
        return False
    heads = [(shape or ())[1] for shape in shapes]
    return all(isinstance(size, int) for size in (*heads, (q.shape or ())[3], (v.shape or ())[3]))


def recurrence(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes the kernel for the recurrence; what is around it is written out first."""
    attrs = node.attrs
    if not _is_known(node):
        return Reject("the kernel is for f32 and heads of known number and size")
    b = rw.builder(node)
    plain = (attrs["feature_map"], attrs["normalizer"]) == ("none", "none")
    if _has_running_sum(node):
        rw.replace(node, *_with_running_sum(node, b))
        return True
    if not attrs["causal"] or not plain:
        body = node.op.body
        assert body is not None, "linear_attention has a body"
        made = body(node, b)
        rw.replace(node, *([made] if isinstance(made, Value) else made))
        return True
    if attrs["scale"] == 0.0:
        return Reject("the kernel takes a scale of 0 for its own default")
    if attrs["rule"] == _LINEAR:
        return False  # there is a choice
    rw.replace(node, *kernel(node, b))
    return True


def kernel(node: Node, b: Builder) -> list[Value]:
    """Returns the results of a causal recurrence without map and normalizer by the kernel."""
    attrs = node.attrs
    q, k, v = operands_of(node, 3)
    state, decay, beta = node.inputs[3:6]
    out, last = b.multi(
        flat_linear_attention, *(_flat(b, x) for x in (q, k, v)), state,
        None if decay is None else _flat(b, _full(b, decay, k, (0, 1, 2))),
        None if beta is None else _flat(b, _full(b, beta, k, (0, 2))),
        rule=attrs["rule"], scale=attrs["scale"],
        heads=(q.shape or ())[1], kv_heads=(k.shape or ())[1],
    )  # fmt: skip
    B, H, T, E = node.outputs[0].shape or ()
    split = b.op(reshaping.reshape, out, shape=(B, T, H, E))
    return [b.op(reshaping.transpose, split, perm=_HEADS_OUTSIDE), last]


def is_kernel(node: Node) -> bool:
    """Whether a node is the recurrence that the kernel computes, and no more."""
    attrs = node.attrs
    plain = (attrs["feature_map"], attrs["normalizer"]) == ("none", "none")
    return bool(plain and attrs["causal"] and attrs["scale"] != 0.0 and _is_known(node))


def is_choice(node: Node) -> bool:
    """Whether a node is a recurrence that chunks and the kernel can compute."""
    return node.attrs["rule"] == _LINEAR and is_kernel(node)


def _has_running_sum(node: Node) -> bool:
    """Whether the sum of the keys can be taken apart from the state; one step is faster whole."""
    attrs = node.attrs
    T = (operands_of(node, 3)[1].shape or ())[2]
    is_sum = attrs["causal"] and attrs["normalizer"] == "sum" and attrs["scale"] > 0
    return bool(is_sum and attrs["rule"] == _LINEAR and T != 1)


def _with_running_sum(node: Node, b: Builder) -> list[Value]:
    """Features in the order of memory, the recurrence, and beside it the sum of the keys.

    As the state's last column the sum would give it a size that the kernel is slow for. Features
    are made before heads are moved: the kernel wants them where they were.
    """
    attrs = node.attrs
    feature_map = FEATURE_MAPS[attrs["feature_map"]]
    q, k, v = operands_of(node, 3)
    state = node.inputs[3]
    q, k = (feature_map.build(b, b.op(reshaping.transpose, x, perm=_HEADS_OUTSIDE)) for x in (q, k))
    B, T, H, F = k.shape or ()
    E, G = (v.shape or ())[3], attrs["kv_groups"]
    held = None
    if state is not None:
        state, total = (
            b.op(slicing.slice_, state, starts=(start,), ends=(end,), axes=(3,), steps=(1,))
            for start, end in ((0, E), (E, int(str(E)) + 1))
        )
        held = b.op(reshaping.reshape, total, shape=(B, 1, H, F))
    # one of the factors of scale cancels: it goes to epsilon
    plain = {"feature_map": "none", "normalizer": "none", "epsilon": 0.0, "scale": 1.0}
    moved = (b.op(reshaping.transpose, x, perm=_HEADS_OUTSIDE) for x in (q, k))
    out, last = b.multi(node.op, *moved, v, state, **{**attrs, **plain})
    out = b.op(reshaping.transpose, out, perm=_HEADS_OUTSIDE)  # [B, T, H * G, E]
    sums = b.op(cumulative.cumsum, k, axis=1)
    if held is not None:
        sums = b.op(arithmetic.add, sums, held)
    grouped, shared = q, sums
    if G != 1:
        grouped = b.op(reshaping.reshape, q, shape=(B, T, H, G, F))
        shared = b.op(reshaping.unsqueeze, sums, axes=(3,))
    weights = b.op(arithmetic.mul, grouped, shared)
    rank = weights.rank or 0
    total = b.op(reduce.reduce_sum, weights, axes=(rank - 1,), keepdims=True)
    if attrs["epsilon"]:
        epsilon = b.constant(attrs["epsilon"] / attrs["scale"], total.dtype)
        total = b.op(arithmetic.add, total, epsilon)
    if G != 1:
        total = b.op(reshaping.reshape, total, shape=(*(out.shape or ())[:3], 1))
    made = b.op(arithmetic.div, out, total)
    end = b.op(slicing.slice_, sums, starts=(-1,), ends=(_END,), axes=(1,), steps=(1,))
    column = b.op(reshaping.reshape, end, shape=(B, H, F, 1))
    return [
        b.op(reshaping.transpose, made, perm=_HEADS_OUTSIDE),
        b.op(slicing.concat, last, column, axis=3),
    ]


def _full(b: Builder, x: Value, like: Value, axes: tuple[int, ...]) -> Value:
    """Returns `x` with the sizes of `like` along some axes."""
    shape = list(x.shape or ())
    for axis in axes:
        shape[axis] = (like.shape or ())[axis]
    return x if tuple(shape) == x.shape else b.op(repeating.expand, x, shape=tuple(shape))


def _flat(b: Builder, x: Value) -> Value:
    """Returns [B, H, T, D] as [B, T, H * D]."""
    B, H, T, D = x.shape or ()
    lined = b.op(reshaping.transpose, x, perm=_HEADS_OUTSIDE)
    return b.op(reshaping.reshape, lined, shape=(B, T, H * D))


def convolution(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes the kernel for a causal convolution with its state."""
    x, weight = node.inputs[:2]
    if x is None or weight is None or x.dtype is not DType.F32 or weight.shape is None:
        return Reject("the kernel is for f32 and weights of known shape")
    if weight.shape[2] == 1:
        return Reject("one tap keeps no state")
    made = rw.builder(node).multi(channels_causal_conv, *node.inputs, **node.attrs)
    rw.replace(node, *made)
    return True


RULES: tuple[LocalRule, ...] = (
    LocalRule("legalize-linear-attention", (linear_attention.linear_attention,), recurrence),
    LocalRule("legalize-causal-conv", (causal_conv.causal_conv,), convolution),
)
