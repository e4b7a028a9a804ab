"""Hybrid attention: a softmax over the last keys, linear attention over all older ones, one sum.

```
s_ij = scale * q_i.k_j          of the last `window` keys, the query's own included
l_ij = fq_i.fk_j                of all keys before these
out  = (gain * a_i sum_j exp(s_ij - m_i) v_j + c_i sum_j l_ij v_j)
       / (gain * a_i sum_j exp(s_ij - m_i) + c_i sum_j l_ij + epsilon)
```

With the merge `lolcats`, m_i is the largest score of the window, and a_i and c_i are 1: the share
of the window does not follow its scores. With `lse`, l_ij is the exponential of a score on the
scale of s_ij: m_i is the largest of the window's scores and 0, and c_i is exp(-m_i). With `share`,
a_i is what makes the window's sum that of its own l_ij (and 1e-6 more): the linear branch, fitted
to all keys by itself, says how much the window gets, and the softmax divides it. A window that
reaches over the whole sequence is softmax attention, with each.

The state is a matrix per key head, whose last column is the sum of the features, and the last
`window` positions: of each its key, its features, its value, and 1 (0 where there is none). Both
have one size at any position. Keys that are not `visible` are in neither.

`branches` leaves a part of both sums out: what remains is the ablation of a trained hybrid.

Source: Zhang et al., LoLCATs, 2024, eq. 6 (`lolcats`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.hybrid_attention_body import SHARE_FLOOR, hybrid_attention_body
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]

MERGES = ("lolcats", "lse", "share")
BRANCHES = ("both", "window", "linear", "none")


def _infer(node: Node) -> tuple[Type, Type, Type]:
    q, k, v, fq, fk = operands_of(node, 5)
    attrs = node.attrs
    for name, known in (("merge", MERGES), ("branches", BRANCHES)):
        if attrs[name] not in known:
            raise node.error(f"`{name}` is `{attrs[name]}`", hint=f"one of {', '.join(known)}")
    if attrs["window"] < 1:
        raise node.error(f"`window` is {attrs['window']}", hint="a query sees itself at least")
    for a, b, axis, what in (
        (q, k, 3, "the head sizes of queries and keys"),
        (fq, fk, 3, "the features of queries and keys"),
        (q, fq, 1, "the heads of queries and their features"),
        (k, v, 1, "the heads of keys and values"),
        (k, fk, 1, "the heads of keys and their features"),
        (q, k, 2, "the lengths of queries and keys"),
        (k, v, 2, "the lengths of keys and values"),
        (k, fk, 2, "the lengths of keys and their features"),
    ):
        if a.shape is not None and b.shape is not None:
            same_size(node, a.shape[axis], b.shape[axis], what)
    if q.shape is not None and k.shape is not None:
        heads = attrs["kv_groups"] * k.shape[1]
        same_size(node, q.shape[1], heads, "query heads and kv_groups x key heads")
    if None in (q.shape, k.shape, v.shape, fk.shape):
        unknown = TensorType(q.dtype, None)
        return unknown, unknown, unknown
    (B, H, T, _), (_, K, _, D), E, F = (
        q.shape or (), k.shape or (), (v.shape or ())[3], (fk.shape or ())[3]
    )  # fmt: skip
    wide = DType.F64 if q.dtype is DType.F64 else DType.F32
    return (
        TensorType(q.dtype, (B, H, T, E)),
        TensorType(wide, (B, K, F, E + 1)),
        TensorType(wide, (B, K, attrs["window"], D + F + E + 1)),
    )


def _eval(
    c: Any,
    q: Array,
    k: Array,
    v: Array,
    fq: Array,
    fk: Array,
    gain: Array | None,
    visible: Array | None,
    state: Array | None,
    recent: Array | None,
) -> tuple[Array, Array, Array]:
    attrs = c.attrs
    window, groups = attrs["window"], attrs["kv_groups"]
    B, H, T, _ = q.shape
    K, D, F, E = k.shape[1], k.shape[3], fk.shape[3], v.shape[3]
    kind = q.dtype
    present = np.ones((B, K, T, 1), kind)
    if visible is not None:
        present = present * visible[:, None, :, None].astype(kind)
    new = np.concatenate([k, fk * present, v * present, present], axis=3)
    if recent is None:
        recent = np.zeros((B, K, window, D + F + E + 1), kind)
    line = np.concatenate([recent.astype(kind), new], axis=2)
    S = np.zeros((B, K, F, E + 1), kind) if state is None else state.astype(kind)
    keys, features, values = (
        np.repeat(x, groups, axis=1)
        for x in (line[..., :D], line[..., D : D + F], line[..., D + F :])
    )
    out = np.zeros((B, H, T, E), kind)
    factor = np.ones((1, H, 1), kind) if gain is None else gain.reshape(1, H, 1)
    for t in range(T):
        leaving = line[:, :, t]
        S = S + leaving[..., D : D + F, None] * leaving[..., None, D + F :]
        span = slice(t + 1, t + 1 + window)
        is_there = values[:, :, span, -1] > 0
        scores = attrs["scale"] * np.einsum("bhd,bhwd->bhw", q[:, :, t], keys[:, :, span])
        scores = np.where(is_there, scores, -np.inf)
        top = np.maximum(np.max(scores, axis=2, keepdims=True), -1e30)
        rest = np.ones_like(top)
        if attrs["merge"] == "lse":
            top = np.maximum(top, 0)
            rest = np.exp(-top)
        near = np.einsum("bhw,bhwe->bhe", np.exp(scores - top), values[:, :, span])
        if attrs["merge"] == "share":
            products = np.einsum("bhf,bhwf->bhw", fq[:, :, t], features[:, :, span])
            mass = np.sum(products, axis=2, keepdims=True) + SHARE_FLOOR
            near = near * (mass / np.maximum(near[..., -1:], 1e-30))
        near = near * factor
        far = np.einsum("bhf,bhfe->bhe", fq[:, :, t], np.repeat(S, groups, axis=1)) * rest
        both = {"both": near + far, "window": near, "linear": far, "none": 0 * far}
        total = both[attrs["branches"]]
        out[:, :, t] = total[..., :-1] / (total[..., -1:] + attrs["epsilon"])
    return out, S, line[:, :, T:]


def _axes(node: Node) -> str | None:
    v, gain, visible, state, recent = (node.inputs[i] for i in (2, 5, 6, 7, 8))
    if v is None or v.shape is None:
        return None
    rest = (
        "." if gain is None else "(h g*)!",
        "." if visible is None else "b t!",
        "." if state is None else "b h f! x!",
        "." if recent is None else "b h w! y!",
    )
    if gain is not None:
        return None  # a head's own number: heads go together with what made it
    return (
        "b (h g*) t! d!, b h t! d!, b h t! e!, b (h g*) t! f!, b h t! f!, "
        + ", ".join(rest)
        + " -> b (h g*) t! e!, b h f! x!, b h w! y!"
    )


def _flops(node: Node) -> DimLike | None:
    q, k, v, _, fk = (value.shape for value in operands_of(node, 5))
    if q is None or k is None or v is None or fk is None:
        return None
    B, H, T, D = q
    near = product((B, H, T, node.attrs["window"])) * (D + v[3] + 1)
    far = product((B, T, fk[3], v[3] + 1)) * (H + k[1])
    return 2 * (near + far)


hybrid_attention = OpSpec(
    name="hybrid_attention",
    source="Zhang et al., LoLCATs, 2024",
    operands=(
        Operand("q"),  # [B, H * kv_groups, T, D]
        Operand("k"),  # [B, H, T, D]
        Operand("v"),  # [B, H, T, E]
        Operand("fq"),  # [B, H * kv_groups, T, F], 0 or more
        Operand("fk"),  # [B, H, T, F], 0 or more
        Operand("gain", optional=True),  # [H * kv_groups], more than 0
        Operand("visible", optional=True),  # bool[B, T]
        Operand("state", optional=True),  # [B, H, F, E + 1], zeros when absent
        Operand("recent", optional=True),  # [B, H, window, D + F + E + 1], zeros when absent
    ),
    results=("out", "new_state", "new_recent"),
    attrs=(
        Attr("scale", AttrKind.FLOAT),
        Attr("window", AttrKind.INT),
        Attr("kv_groups", AttrKind.INT, 1),  # query heads per key head
        Attr("merge", AttrKind.STR, "lse"),
        Attr("branches", AttrKind.STR, "both"),
        Attr("epsilon", AttrKind.FLOAT, 1e-12),
    ),
    axes=_axes,
    counts={"kv_groups": "g"},
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=hybrid_attention_body,
)

OPS: tuple[OpSpec, ...] = (hybrid_attention,)
