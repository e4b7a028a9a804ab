"""Scaled dot-product attention, pinned: one meaning for every runtime.

```
score[b, h, s, t] = scale * sum_d q[b, h, s, d] * k[b, h // kv_groups, t, d]
score             = softcap * tanh(score / softcap)                     where softcap > 0
score             = score + mask                                        float mask
probability       = softmax over the visible t                          (sinks join the sum)
                    or another modifier and normalizer: `attention_weights`
out[b, h, s, e]   = sum_t probability[b, h, s, t] * v[b, h // kv_groups, t, e]
```

A key is visible unless one of these hides it: a bool mask that is False there, a float mask of
-inf, `kv_lengths`, or the window. A query that sees no key gives zeros, never NaN.

The window exists when `causal_offset` is given: query s stands at key position p = s +
causal_offset and sees p - left <= t <= p + right, where -1 means unbounded. The default window
(-1, 0) is causal attention. Offset 0 aligns the first query with the first key; T - S aligns the
last ones.

Past concatenation and rotary embedding are operators of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, known_equal, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops.attention_body import attention_body
from regraft.ir.ops.attention_weights import (
    MODIFIERS,
    NORMALIZERS,
    hidden_at,
    is_softmax,
    masked_softmax,
    modified,
    weights_of,
)
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_HEADS = "(h g*)"


def is_windowed(node: Node) -> bool:
    """Whether positions decide which keys a query sees."""
    given = node.attrs["causal_offset"] is not None or node.operand("causal_offset") is not None
    return given and node.attrs["window"] != (-1, -1)


def softmax_operands(node: Node) -> tuple[Value | None, ...] | None:
    """Returns q, k, v, mask, kv_lengths, sinks and causal_offset of attention by softmax.

    None where another modifier or normalizer makes the weights: what knows scores and softmax alone
    asks here, so that an operand that changes the meaning is never passed over.
    """
    *operands, alpha, gates = node.inputs
    if not is_softmax(node.attrs) or alpha is not None or gates is not None:
        return None
    return tuple(operands)


def _axes(node: Node) -> str | None:
    q, _, v, mask, lengths, sinks, offset, alpha, gates = node.inputs
    if q is None or v is None or q.shape is None or v.shape is None:
        return None
    if node.attrs["modifier"] == "selective":
        return None  # the scores of the first head are every head's
    # dropping a query moves those after it, which matters when positions do
    labels = ["b", _HEADS, "s!" if is_windowed(node) else "s", "t!"]
    mask_term = "." if mask is None else _mask_term(mask, q.shape, v.shape[2], labels)
    if mask_term is None:
        return None
    b, _, s, _ = labels
    offset_term = "." if offset is None else {0: "", 1: b}.get(offset.rank or 0, ".")
    return (
        f"{b} {_HEADS} {s} ~d, {b} h t! ~d, {b} h t! e, {mask_term}, "
        f"{'.' if lengths is None else b}, {'.' if sinks is None else _HEADS}, {offset_term}, "
        f"{'.' if alpha is None else _HEADS}, {'.' if gates is None else f'{b} {_HEADS} {s}'} "
        f"-> {b} {_HEADS} {s} e"
    )


def _mask_term(mask: Value, q: tuple[DimLike, ...], keys: DimLike, labels: list[str]) -> str | None:
    """Returns the mask's term, None when nothing tells whether it has the heads' axis.

    An axis that may be broadcast or not, only run time knows, is fixed: `labels` are changed.
    """
    if mask.shape is None or len(mask.shape) > 4:
        return None
    sizes = (q[0], q[1], q[2], keys)
    terms: list[str] = []
    for axis in range(-1, -len(mask.shape) - 1, -1):
        size, full = mask.shape[axis], sizes[axis]
        if size == 1 and full != 1:
            terms.append("1")
        elif known_equal(size, full):
            terms.append(labels[axis])
        elif labels[axis] == _HEADS:
            return None
        else:
            labels[axis] = labels[axis].rstrip("!") + "!"
            terms.append(f"m{-axis}!")
    return " ".join(reversed(terms))


def _infer(node: Node) -> Type:
    q, k, v = operands_of(node, 3)
    for value, name in ((q, "q"), (k, "k"), (v, "v")):
        if value.rank not in (None, 4):
            raise node.error(
                f"`{name}` has rank {value.rank}", hint="the layout is [batch, heads, length, size]"
            )
    if k.shape is not None and v.shape is not None:
        same_size(node, k.shape[2], v.shape[2], "the lengths of keys and values")
        same_size(node, k.shape[1], v.shape[1], "the heads of keys and values")
    if q.shape is not None and k.shape is not None:
        same_size(node, q.shape[3], k.shape[3], "the head sizes of queries and keys")
        heads = node.attrs["kv_groups"] * k.shape[1]
        same_size(node, q.shape[1], heads, "query heads and kv_groups x key heads")
    _check_weights(node)
    if q.shape is None:
        return TensorType(q.dtype, None)
    size = node.fresh_dim(0, 3) if v.shape is None else v.shape[3]
    return TensorType(q.dtype, (*q.shape[:3], size))


def _check_weights(node: Node) -> None:
    attrs = node.attrs
    normalizer = NORMALIZERS.get(attrs["normalizer"])
    if normalizer is None:
        known = ", ".join(NORMALIZERS)
        raise node.error(f"`normalizer` is `{attrs['normalizer']}`", hint=f"one of {known}")
    modifier = MODIFIERS.get(attrs["modifier"])
    if modifier is None:
        known = ", ".join(MODIFIERS)
        raise node.error(f"`modifier` is `{attrs['modifier']}`", hint=f"one of {known}")
    for name, wanted in (("normalizer", normalizer.parameters), ("modifier", modifier)):
        given = attrs[f"{name}_parameters"]
        if len(given) > len(wanted):
            raise node.error(
                f"{name} `{attrs[name]}` has {len(given)} parameters",
                hint=f"it takes {', '.join(wanted) or 'none'}",
            )
    alpha = normalizer.read(attrs["normalizer_parameters"]).get("alpha", 1.0)
    if normalizer.name == "entmax" and not 1 <= alpha <= 2:
        raise node.error(f"`alpha` of entmax is {alpha:g}", hint="it is between 1 and 2")
    if node.operand("alpha") is not None and normalizer.name != "entmax":
        raise node.error(f"normalizer `{normalizer.name}` takes no `alpha`")
    if (node.operand("gates") is None) != (attrs["modifier"] != "threshold"):
        raise node.error("`gates` belong to the modifier `threshold`, which needs them")
    is_placed = attrs["causal_offset"] is not None or node.operand("causal_offset") is not None
    if attrs["modifier"] == "selective" and not is_placed:
        raise node.error("modifier `selective` needs `causal_offset`: it counts earlier queries")


def visible_keys(
    attrs: Any, num_queries: int, num_keys: int, lengths: Array | None, offset: Any
) -> Array | None:
    """Returns which keys positions and lengths leave visible: bool [S, T] or [B, 1, S, T]."""
    visible: Array | None = None
    keys = np.arange(num_keys)
    if offset is not None:
        left, right = attrs["window"]
        offsets = np.asarray(offset).reshape(-1, 1, 1, 1)
        distance = keys - (np.arange(num_queries)[:, None] + offsets)  # t - p
        visible = np.ones(distance.shape, bool)
        if left >= 0:
            visible &= distance >= -left
        if right >= 0:
            visible &= distance <= right
    if lengths is not None:
        valid = keys < lengths.reshape(-1, 1, 1, 1)
        visible = valid if visible is None else visible & valid
    return visible


def _eval(
    c: Any,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    lengths: Array | None,
    sinks: Array | None,
    offset: Array | None,
    alpha: Array | None,
    gates: Array | None,
) -> Array:
    attrs = c.attrs
    B, H, S, D = q.shape
    G, T = attrs["kv_groups"], k.shape[2]
    grouped = q.reshape(B, H // G, G * S, D)
    scores = (np.matmul(grouped, k.swapaxes(-1, -2)) * q.dtype.type(attrs["scale"])).reshape(
        B, H, S, T
    )
    early = attrs["mask_before_softcap"]
    additive = None if mask is None or mask.dtype == bool else mask
    if additive is not None and early:
        scores = scores + additive
    if attrs["softcap"] > 0:
        scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
    if additive is not None and early:
        scores = np.where(np.isneginf(additive), -np.inf, scores)  # the cap made it finite
    elif additive is not None:
        scores = scores + additive
    elif mask is not None:
        scores = np.where(mask, scores, -np.inf)
    start = c.param("causal_offset", offset)
    visible = visible_keys(attrs, S, T, lengths, start)
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    scores = scores.astype(q.dtype, copy=False)
    if is_softmax(attrs):
        weights = masked_softmax(scores, sinks)
    else:
        shown = np.broadcast_to(~np.isneginf(scores), scores.shape)
        if additive is not None:
            shown = shown & (additive > hidden_at(attrs))
        positions = np.arange(S)[:, None] + (
            0 if start is None else np.reshape(start, (-1, 1, 1, 1))
        )
        finite, shown = modified(attrs, np.where(shown, scores, 0), shown, gates, positions)
        weights = weights_of(attrs, finite, shown, sinks, alpha)
    out = np.matmul(weights.reshape(B, H // G, G * S, T), v.astype(q.dtype, copy=False))
    return np.reshape(out, (B, H, S, v.shape[3]))


def _flops(node: Node) -> DimLike | None:
    q, _, v = (value.shape for value in operands_of(node, 3))
    if q is None or v is None:
        return None
    # 2 per multiply-accumulate of both products; a window is not subtracted
    return 2 * product((*q[:3], v[2])) * (q[3] + v[3])


attention = OpSpec(
    name="attention",
    source="ONNX Attention-25",
    operands=(
        Operand("q"),  # [B, H, S, D]
        Operand("k"),  # [B, H / kv_groups, T, D]
        Operand("v"),  # [B, H / kv_groups, T, E]
        Operand("mask", optional=True),  # bool or float, broadcasts to [B, H, S, T]
        Operand("kv_lengths", optional=True),  # i64[B]: keys at and after this position are hidden
        Operand("sinks", optional=True),  # [H]
        # one size, or one per batch as i64[B]
        Operand("causal_offset", optional=True, either=AttrKind.DIM),
        Operand("alpha", optional=True),  # [H], of the normalizer entmax
        Operand("gates", optional=True),  # [B, H, S], of the modifier threshold
    ),
    attrs=(
        Attr("scale", AttrKind.FLOAT),
        Attr("kv_groups", AttrKind.INT, 1),  # query heads per key head
        Attr("window", AttrKind.INTS, (-1, 0)),  # (left, right)
        Attr("softcap", AttrKind.FLOAT, 0.0),
        # a float mask is added before the soft cap instead of after it; keys stay hidden either way
        Attr("mask_before_softcap", AttrKind.BOOL, False),
        Attr("softmax_dtype", AttrKind.DTYPE, None),  # None: that of q
        # how scores become weights, and its parameters in the order of `attention_weights`
        Attr("normalizer", AttrKind.STR, "softmax"),
        Attr("normalizer_parameters", AttrKind.FLOATS, ()),
        Attr("modifier", AttrKind.STR, "none"),
        Attr("modifier_parameters", AttrKind.FLOATS, ()),
    ),
    axes=_axes,
    counts={"kv_groups": "g"},
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=attention_body,
)

OPS: tuple[OpSpec, ...] = (attention,)
