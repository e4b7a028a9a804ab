"""Operators of the target level: what ONNX Runtime has and the canonical vocabulary has not.

Legalization makes them, emission prints them, loading raises them again. The flat forms of
attention and rotary embedding take [batch, length, heads * size], which saves the transposes
around [batch, heads, length, size].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Node
from regraft.ir.ops import activation, attention, norm, rotary
from regraft.ir.ops.attention_weights import masked_softmax
from regraft.ir.ops.shapes import infer_same, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]


def split_heads(x: Array, heads: int) -> Array:
    """Returns [B, S, heads * D] as [B, heads, S, D]."""
    B, S, width = x.shape
    return x.reshape(B, S, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """Returns [B, H, S, D] as [B, S, H * D]."""
    B, H, S, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, S, H * D)


def _infer_flat(node: Node) -> Type:
    q, k, v = operands_of(node, 3)
    for value, name in ((q, "q"), (k, "k"), (v, "v")):
        if value.rank not in (None, 3):
            raise node.error(
                f"`{name}` has rank {value.rank}", hint="the layout is [batch, length, width]"
            )
    if q.shape is None or v.shape is None:
        return TensorType(q.dtype, None)
    heads, kv_heads = node.attrs["heads"], node.attrs["kv_heads"]
    return TensorType(q.dtype, (*q.shape[:2], exactdiv(v.shape[2], kv_heads) * heads))


def _eval_flat(c: Any, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    heads, kv_heads = c.attrs["heads"], c.attrs["kv_heads"]
    q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
    B, H, S, D = q.shape
    T, G = k.shape[2], heads // kv_heads
    scores = np.matmul(q.reshape(B, kv_heads, G * S, D), k.swapaxes(-1, -2)).reshape(B, H, S, T)
    scores = scores * q.dtype.type(c.attrs["scale"])
    if c.attrs["softcap"] > 0:
        scores = c.attrs["softcap"] * np.tanh(scores / c.attrs["softcap"])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if c.attrs["causal"]:
        scores = np.where(np.tri(S, T, dtype=bool), scores, -np.inf)
    weights = masked_softmax(scores.astype(q.dtype, copy=False))
    out = np.matmul(weights.reshape(B, kv_heads, G * S, T), v).reshape(B, H, S, v.shape[3])
    return merge_heads(out)


def _flops_flat(node: Node) -> DimLike | None:
    q, k, v = (value.shape for value in operands_of(node, 3))
    if q is None or k is None or v is None:
        return None
    heads, kv_heads = node.attrs["heads"], node.attrs["kv_heads"]
    sizes: DimLike = exactdiv(q[2], heads) + exactdiv(v[2], kv_heads)
    scores: DimLike = 2 * heads * product((*q[:2], k[1]))
    return scores * sizes


_QKV = (Operand("q"), Operand("k"), Operand("v"))
_HEADS = (
    Attr("heads", AttrKind.INT),
    Attr("kv_heads", AttrKind.INT),
    Attr("scale", AttrKind.FLOAT),
    Attr("causal", AttrKind.BOOL, False),  # the first query stands at the first key
    Attr("softcap", AttrKind.FLOAT, 0.0),
)

native_attention = dataclasses.replace(
    attention.attention, name="ort.attention", source="ONNX Attention-23, wanted as it is"
)
"""`attention` that must not be written out: it raises the emission opset."""

flat_attention = OpSpec(
    name="ort.flat_attention",
    source="ONNX Attention-23 of rank 3",
    operands=(*_QKV, Operand("mask", optional=True)),  # [.., S, T], bool or float
    attrs=_HEADS,
    infer=_infer_flat,
    eval=_eval_flat,
    flops=_flops_flat,
)

multi_head_attention = OpSpec(
    name="ort.multi_head_attention",
    source="com.microsoft MultiHeadAttention-1",
    operands=_QKV,
    attrs=_HEADS,
    infer=_infer_flat,
    eval=_eval_flat,
    flops=_flops_flat,
)

group_query_attention = OpSpec(
    name="ort.group_query_attention",
    source="com.microsoft GroupQueryAttention-1 with an empty past",
    operands=(
        *_QKV,
        Operand("past"),  # [B, kv_heads, 0, D], for keys and values: without one it is slow
        Operand("last"),  # i32[B]: T - 1
        Operand("total"),  # i32 scalar: T
    ),
    attrs=_HEADS,
    infer=_infer_flat,
    eval=lambda c, q, k, v, past, last, total: _eval_flat(c, q, k, v),
    flops=_flops_flat,
)


def _eval_rotary(c: Any, x: Array, cos: Array, sin: Array, positions: Array | None) -> Array:
    turned = rotary.rotary_embedding.eval(  # type: ignore[misc]  # it has one
        c, split_heads(x, c.attrs["heads"]), cos, sin, positions
    )
    return merge_heads(turned)


flat_rotary = OpSpec(
    name="ort.flat_rotary",
    source="RotaryEmbedding of rank 3 (com.microsoft, ONNX-23)",
    operands=rotary.rotary_embedding.operands,
    attrs=(Attr("heads", AttrKind.INT), *rotary.rotary_embedding.attrs),
    infer=infer_same,
    eval=_eval_rotary,
    flops=lambda node: None if node.output.shape is None else 3 * product(node.output.shape),
)


def _eval_bias_gelu(c: Any, x: Array, bias: Array) -> Array:
    result: Array = activation.gelu.eval(c, x + bias)  # type: ignore[misc]  # it has one
    return result


bias_gelu = OpSpec(
    name="ort.bias_gelu",
    source="com.microsoft BiasGelu-1, FastGelu-1 where tanh",
    operands=(Operand("x"), Operand("bias")),  # bias [width]
    attrs=activation.gelu.attrs,
    traits=Trait.PURE,
    infer=infer_same,
    eval=_eval_bias_gelu,
)


def _infer_skip(node: Node) -> tuple[Type, Type]:
    own = infer_same(node)
    return own, own


def _eval_skip_layer_norm(
    c: Any, x: Array, skip: Array, scale: Array, bias: Array | None
) -> tuple[Array, Array]:
    total = x + skip
    out = norm.layer_norm.eval(_LastAxis(c), total, scale, bias)  # type: ignore[misc]
    return out[0], total


def _eval_skip_rms_norm(c: Any, x: Array, skip: Array, scale: Array) -> tuple[Array, Array]:
    total = x + skip
    out = norm.rms_norm.eval(_LastAxis(c), total, scale)  # type: ignore[misc]
    return out[0], total


class _LastAxis:
    """The attributes of a norm over the last axis."""

    def __init__(self, c: Any) -> None:
        self.attrs = {**c.attrs, "axis": -1}


_EPSILON = Attr("epsilon", AttrKind.FLOAT)

skip_layer_norm = OpSpec(
    name="ort.skip_layer_norm",
    source="com.microsoft SkipLayerNormalization-1",
    operands=(Operand("x"), Operand("skip"), Operand("scale"), Operand("bias", optional=True)),
    results=("out", "total"),
    attrs=(_EPSILON,),
    infer=_infer_skip,
    eval=_eval_skip_layer_norm,
)

skip_rms_norm = OpSpec(
    name="ort.skip_rms_norm",
    source="com.microsoft SkipSimplifiedLayerNormalization-1",
    operands=(Operand("x"), Operand("skip"), Operand("scale")),
    results=("out", "total"),
    attrs=(_EPSILON,),
    infer=_infer_skip,
    eval=_eval_skip_rms_norm,
)

OPS: tuple[OpSpec, ...] = (
    native_attention, flat_attention, multi_head_attention, group_query_attention, flat_rotary,
    bias_gelu, skip_layer_norm, skip_rms_norm,
)  # fmt: skip
