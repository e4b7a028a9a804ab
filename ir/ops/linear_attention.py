"""Linear attention: a recurrent state of one matrix per head instead of a softmax over keys.

```
S   = exp(decay_t) * S                                  (gated rules)
v_t = beta_t * (v_t - S^T k_t)                          (delta rules)
S   = S + k_t v_t^T
o_t = scale * S^T q_t
```

The decay is the logarithm of a factor; it and the update come before the read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, cast, control, fill, functions, linalg, reshaping
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]

RULES = ("linear", "gated", "delta", "gated_delta")


def _axes(node: Node) -> str | None:
    decay, beta = node.inputs[4:6]
    # a position of the key size that is zero in q, k and the state never contributes
    decay_term = "." if decay is None else _tail(node, 4, "~d")
    beta_term = "." if beta is None else _tail(node, 5, "1")
    if decay_term is None or beta_term is None:
        return None
    return (
        f"b (h g*) t! ~d, b h t! ~d, b h t! e, b h ~d e, {decay_term}, {beta_term} "
        "-> b (h g*) t! e, b h ~d e"
    )


def _tail(node: Node, idx: int, last: str) -> str | None:
    """Returns the term of decay or beta, whose head and last axis may have size 1."""
    value, k = node.inputs[idx], node.inputs[1]
    if value is None or value.shape is None or k is None or k.shape is None:
        return None
    head = "1" if value.shape[1] == 1 and k.shape[1] != 1 else "h"
    return f"b {head} t! {'1' if value.shape[3] == 1 else last}"


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
    state_dtype = q.dtype if state is None else state.dtype
    shape = None if state is None else state.shape
    out: tuple[DimLike, ...] | None = None
    if k.shape is not None and v.shape is not None:
        same_size(node, k.shape[1], v.shape[1], "the heads of keys and values")
        same_size(node, k.shape[2], v.shape[2], "the lengths of keys and values")
        shape = (*k.shape[:2], k.shape[3], v.shape[3])
        out = (k.shape[0], attrs["kv_groups"] * k.shape[1], k.shape[2], v.shape[3])
    return TensorType(q.dtype, out), TensorType(state_dtype, shape)


def _eval(
    c: Any,
    q: Array,
    k: Array,
    v: Array,
    state: Array | None,
    decay: Array | None,
    beta: Array | None,
) -> tuple[Array, Array]:
    B, H, T, D = k.shape
    G, E = c.attrs["kv_groups"], v.shape[3]
    S = np.zeros((B, H, D, E), q.dtype) if state is None else state.astype(q.dtype)
    grouped = q.reshape(B, H, G, T, D)
    out = np.zeros((B, H, G, T, E), q.dtype)
    for t in range(T):
        key, value = k[:, :, t, :, None], v[:, :, t, None, :]
        if decay is not None:
            S = S * np.exp(decay[:, :, t, :, None])
        if beta is not None:
            retrieved = np.matmul(key.swapaxes(-1, -2), S)
            value = beta[:, :, t, :, None] * (value - retrieved)
        S = S + key * value
        out[:, :, :, t] = np.matmul(grouped[:, :, :, t], S)
    return out.reshape(B, H * G, T, E) * q.dtype.type(c.attrs["scale"]), S


def _flops(node: Node) -> DimLike | None:
    q, k, v = (value.shape for value in operands_of(node, 3))
    if q is None or k is None or v is None:
        return None
    B, H, T, D = k
    per_state = 2 if "delta" in node.attrs["rule"] else 1  # retrieval and write
    macs = product((B, T, D, v[3])) * (per_state * H + q[1])
    return 2 * macs


def _body(node: Node, b: Builder) -> Sequence[Value]:
    """One scan over the positions; decay and beta are scanned too."""
    q, k, v = operands_of(node, 3)
    state, decay, beta = node.inputs[3:6]
    if q.dtype is None or k.shape is None or v.shape is None:
        raise AssertionError("the body of linear_attention needs shapes and an element type")
    B, H, T, D = k.shape
    E, G = v.shape[3], node.attrs["kv_groups"]
    state_dtype = q.dtype if state is None else state.dtype
    if state is None:
        zero = np.zeros(1, q.dtype.numpy)
        state = b.op(fill.constant_of_shape, shape=(B, H, D, E), value=zero)
    # a head's queries are the rows of a [G, D] matrix per position
    grouped = b.op(reshaping.reshape, q, shape=(B, H, G, T, D))
    scanned = [grouped, k, v, *(x for x in (decay, beta) if x is not None)]
    axes = (3, *[2] * (len(scanned) - 1))
    wide = DType.F64 if q.dtype is DType.F64 else DType.F32  # the state accumulates rounding
    state, *scanned = (_as(b, x, wide) for x in (state, *scanned))
    step = _step(b, node, state, [(x, axis) for x, axis in zip(scanned, axes, strict=True)])
    final, out = b.node(
        control.scan, state, *scanned, num_outputs=2, bodies=(step,),
        num_carried=1, num_scanned=len(scanned), num_captures=0,
        input_axes=axes, input_reversed=(0,) * len(axes),
        output_axes=(3,), output_reversed=(0,),
    ).outputs  # fmt: skip
    out = b.op(reshaping.reshape, out, shape=(B, H * G, T, E))
    results = [(out, q.dtype), (final, state_dtype)]
    return [_as(b, x, dtype) for x, dtype in results]


def _as(b: Builder, x: Value, dtype: DType | None) -> Value:
    return x if x.dtype is dtype else b.op(cast.cast, x, to=dtype)


def _step(b: Builder, node: Node, state: Value, scanned: list[tuple[Value, int]]) -> Graph:
    graph = Graph(b.graph.scope)
    inner = Builder(graph)
    S = graph.add_input("state", state.type)
    q, k, v, *rest = (
        graph.add_input(None, control.slice_type(value.type, axis)) for value, axis in scanned
    )
    rule, dtype = node.attrs["rule"], state.dtype
    if "gated" in rule:
        factor = inner.op(functions.exp, inner.op(reshaping.unsqueeze, rest[0], axes=(3,)))
        S = inner.op(arithmetic.mul, S, factor)
    value = inner.op(reshaping.unsqueeze, v, axes=(2,))
    if "delta" in rule:
        row = inner.op(reshaping.unsqueeze, k, axes=(2,))
        error = inner.op(arithmetic.sub, value, inner.op(linalg.matmul, row, S))
        beta = inner.op(reshaping.unsqueeze, rest[-1], axes=(3,))
        value = inner.op(arithmetic.mul, error, beta)
    column = inner.op(reshaping.unsqueeze, k, axes=(3,))
    S = inner.op(arithmetic.add, S, inner.op(arithmetic.mul, column, value))
    scale = inner.constant(node.attrs["scale"], dtype)
    graph.add_output("new_state", S)
    graph.add_output("out", inner.op(arithmetic.mul, inner.op(linalg.matmul, q, S), scale))
    return graph


linear_attention = OpSpec(
    name="linear_attention",
    source="ONNX LinearAttention-27",
    operands=(
        Operand("q"),  # [B, H * kv_groups, T, D]
        Operand("k"),  # [B, H, T, D]
        Operand("v"),  # [B, H, T, E]
        Operand("state", optional=True),  # [B, H, D, E], zeros when absent
        Operand("decay", optional=True),  # [B, H, T, D or 1], logarithms
        Operand("beta", optional=True),  # [B, H or 1, T, 1]
    ),
    results=("out", "new_state"),
    attrs=(
        Attr("rule", AttrKind.STR),
        Attr("scale", AttrKind.FLOAT),
        Attr("kv_groups", AttrKind.INT, 1),  # query heads per key head
    ),
    axes=_axes,
    counts={"kv_groups": "g"},
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=_body,
)

OPS: tuple[OpSpec, ...] = (linear_attention,)
