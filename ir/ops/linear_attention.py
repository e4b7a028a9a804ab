"""Linear attention: a recurrent state of one matrix per head instead of a softmax over keys.

```
q, k  = feature_map(q), feature_map(k)
S     = exp(decay_t) * S                                  (gated rules)
v_t   = beta_t * (v_t - S^T k_t)                          (delta rules)
S     = S + k_t v_t^T
o_t   = scale * S^T q_t
```

The decay is the logarithm of a factor; it and the update come before the read. Without `causal`
(rule `linear`) every query reads the state after the last position. The normalizer `sum` divides
o_t by scale * z_t^T q_t + epsilon, where z is the sum of the k, decayed alike: it is the state's
last column, written by a further value that is always 1. The normalizer `mean` (not causal) makes
every row of weights sum to 1: scale / T (q.k_t - mean of q.k) + 1 / T.

`chunk_size` is how many positions are computed at once: 1 is the recurrence, T the parallel form,
0 leaves it to who computes. The result is the same.

Source: ONNX LinearAttention-27; Katharopoulos et al. 2020 (sum); Han et al. 2024 (mean).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.linear_attention_body import linear_attention_body
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

RULES = ("linear", "gated", "delta", "gated_delta")
NORMALIZERS = ("none", "sum", "mean")


def _axes(node: Node) -> str | None:
    decay, beta = node.inputs[4:6]
    attrs = node.attrs
    if not FEATURE_MAPS[attrs["feature_map"]].keeps_zero or attrs["normalizer"] == "sum":
        return _fixed_axes(node)
    # a position of the key size that is zero in q, k and the state never contributes
    decay_term = "." if decay is None else _tail(node, 4, "~d")
    beta_term = "." if beta is None else _tail(node, 5, "1")
    if decay_term is None or beta_term is None:
        return None
    rows = "t!" if attrs["causal"] else "s"
    return (
        f"b (h g*) {rows} ~d, b h t! ~d, b h t! e, b h ~d e, {decay_term}, {beta_term} "
        f"-> b (h g*) {rows} e, b h ~d e"
    )


def _fixed_axes(node: Node) -> str | None:
    """Returns the rule where features or the sum's own column tie sizes in other ways."""
    decay = "." if node.inputs[4] is None else _tail(node, 4, "d!")
    beta = "." if node.inputs[5] is None else _tail(node, 5, "1")
    if decay is None or beta is None:
        return None
    rows = "t!" if node.attrs["causal"] else "s"
    return (
        f"b (h g*) {rows} d!, b h t! d!, b h t! e!, b h f! x!, {decay}, {beta} "
        f"-> b (h g*) {rows} e!, b h f! x!"
    )


def _tail(node: Node, idx: int, last: str) -> str | None:
    """Returns the term of decay or beta, whose head and last axis may have size 1."""
    value, k = node.inputs[idx], node.inputs[1]
    if value is None or value.shape is None or k is None or k.shape is None:
        return None
    terms = (("b", 0), ("h", 1), ("t!", 2))
    lead = ["1" if value.shape[i] == 1 and k.shape[i] != 1 else label for label, i in terms]
    return f"{' '.join(lead)} {'1' if value.shape[3] == 1 else last}"


def _infer(node: Node) -> tuple[Type, Type]:
    q, k, v = operands_of(node, 3)
    state, decay, beta = node.inputs[3:6]
    attrs = node.attrs
    if attrs["rule"] not in RULES:
        raise node.error(f"`rule` is `{attrs['rule']}`", hint=f"one of {', '.join(RULES)}")
    for value, name, wanted in (
        (decay, "decay", "gated" in attrs["rule"]),
        (beta, "beta", "delta" in attrs["rule"]),
    ):
        if (value is not None) != wanted:
            raise node.error(f"rule `{attrs['rule']}` {'needs' if wanted else 'takes no'} `{name}`")
    if q.shape is not None and k.shape is not None:
        same_size(node, q.shape[3], k.shape[3], "the head sizes of queries and keys")
        heads = attrs["kv_groups"] * k.shape[1]
        same_size(node, q.shape[1], heads, "query heads and kv_groups x key heads")
    _check_form(node)
    state_dtype = q.dtype if state is None else state.dtype
    shape = None if state is None else state.shape
    out: tuple[DimLike, ...] | None = None
    if k.shape is not None and v.shape is not None:
        same_size(node, k.shape[1], v.shape[1], "the heads of keys and values")
        same_size(node, k.shape[2], v.shape[2], "the lengths of keys and values")
        features = FEATURE_MAPS[attrs["feature_map"]].size(k.shape[3])
        shape = (*k.shape[:2], features, v.shape[3] + (attrs["normalizer"] == "sum"))
        rows = k.shape[2] if attrs["causal"] or q.shape is None else q.shape[2]
        out = (k.shape[0], attrs["kv_groups"] * k.shape[1], rows, v.shape[3])
    return TensorType(q.dtype, out), TensorType(state_dtype, shape)


def _check_form(node: Node) -> None:
    attrs = node.attrs
    for name, known in (("feature_map", FEATURE_MAPS), ("normalizer", NORMALIZERS)):
        if attrs[name] not in known:
            raise node.error(f"`{name}` is `{attrs[name]}`", hint=f"one of {', '.join(known)}")
    if not attrs["causal"] and attrs["rule"] != "linear":
        raise node.error(f"rule `{attrs['rule']}` is causal: positions follow each other")
    if attrs["normalizer"] == "mean" and (attrs["causal"] or node.inputs[3] is not None):
        raise node.error("normalizer `mean` is neither causal nor continues from a state")


def _eval(
    c: Any,
    q: Array,
    k: Array,
    v: Array,
    state: Array | None,
    decay: Array | None,
    beta: Array | None,
) -> tuple[Array, Array]:
    attrs = c.attrs
    apply = FEATURE_MAPS[attrs["feature_map"]].apply
    q, k = apply(q).astype(q.dtype), apply(k).astype(k.dtype)
    if attrs["normalizer"] == "sum":
        v = np.concatenate([v, np.ones_like(v[..., :1])], axis=3)
    B, H, T, D = k.shape
    G, E = attrs["kv_groups"], v.shape[3]
    scale = q.dtype.type(attrs["scale"])
    S = np.zeros((B, H, D, E), q.dtype) if state is None else state.astype(q.dtype)
    grouped = q.reshape(B, H, G, T, D) if attrs["causal"] else q.reshape(B, H, G, -1, D)
    if not attrs["causal"]:
        S = S + np.matmul(k.swapaxes(-1, -2), v)
        out = np.matmul(grouped, S[:, :, None]) * scale
        if attrs["normalizer"] == "mean":
            mean = np.mean(k, axis=2, keepdims=True)[:, :, None]
            rest = 1 - scale * np.matmul(grouped, mean.swapaxes(-1, -2))
            out = out / max(T, 1) + rest * np.mean(v, axis=2, keepdims=True)[:, :, None]
    else:
        out = np.zeros((B, H, G, T, E), q.dtype)
        for t in range(T):
            key, value = k[:, :, t, :, None], v[:, :, t, None, :]
            if decay is not None:
                S = S * np.exp(decay[:, :, t if decay.shape[2] != 1 else 0, :, None])
            if beta is not None:
                retrieved = np.matmul(key.swapaxes(-1, -2), S)
                value = beta[:, :, t, :, None] * (value - retrieved)
            S = S + key * value
            out[:, :, :, t] = np.matmul(grouped[:, :, :, t], S)
        out = out * scale
    if attrs["normalizer"] == "sum":
        out = out[..., :-1] / (out[..., -1:] + q.dtype.type(attrs["epsilon"]))
    return np.reshape(out, (B, H * G, *out.shape[3:])).astype(q.dtype), S


def _flops(node: Node) -> DimLike | None:
    q, k, v = (value.shape for value in operands_of(node, 3))
    if q is None or k is None or v is None:
        return None
    B, H, T, D = k
    per_state = 2 if "delta" in node.attrs["rule"] else 1  # retrieval and write
    macs = product((B, T, D, v[3])) * (per_state * H + q[1])
    return 2 * macs


linear_attention = OpSpec(
    name="linear_attention",
    source="ONNX LinearAttention-27",
    operands=(
        Operand("q"),  # [B, H * kv_groups, T, D]
        Operand("k"),  # [B, H, T, D]
        Operand("v"),  # [B, H, T, E]
        Operand("state", optional=True),  # [B, H, features, E (+ 1: sum)], zeros when absent
        Operand("decay", optional=True),  # [B, H, T, D or 1], logarithms; B, H and T may be 1
        Operand("beta", optional=True),  # [B, H or 1, T, 1]
    ),
    results=("out", "new_state"),
    attrs=(
        Attr("rule", AttrKind.STR),
        Attr("scale", AttrKind.FLOAT),
        Attr("kv_groups", AttrKind.INT, 1),  # query heads per key head
        Attr("feature_map", AttrKind.STR, "none"),
        Attr("normalizer", AttrKind.STR, "none"),
        Attr("causal", AttrKind.BOOL, True),
        Attr("epsilon", AttrKind.FLOAT, 0.0),  # joins the sum
        Attr("chunk_size", AttrKind.INT, 0),
    ),
    axes=_axes,
    counts={"kv_groups": "g"},
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=linear_attention_body,
)

OPS: tuple[OpSpec, ...] = (linear_attention,)
