"""Linear attention in simpler operators: feature maps and normalizers around the recurrence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    control,
    fill,
    functions,
    linalg,
    reduce,
    repeating,
    reshaping,
    sizes,
    slicing,
)
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.ir.ops.linear_attention_chunks import Call, in_chunks, one_step
from regraft.ir.ops.shapes import operands_of
from regraft.ir.types import DType


def linear_attention_body(node: Node, b: Builder) -> Sequence[Value]:
    """Returns the results of a `linear_attention` node made of simpler operators.

    What is more than the recurrence is built around an operator that is the recurrence alone,
    which backends have kernels for.
    """
    attrs = node.attrs
    if attrs["causal"] and (attrs["feature_map"], attrs["normalizer"]) == ("none", "none"):
        return _recurrence(node, b)
    q, k, v = operands_of(node, 3)
    if v.shape is None or v.dtype is None:
        raise AssertionError("the body of linear_attention needs shapes and an element type")
    feature_map = FEATURE_MAPS[attrs["feature_map"]]
    q, k = feature_map.build(b, q), feature_map.build(b, k)
    E, is_sum = v.shape[3], attrs["normalizer"] == "sum"
    if is_sum:
        one = np.ones(1, v.dtype.numpy)
        ones = b.op(fill.constant_of_shape, shape=(*v.shape[:3], 1), value=one)
        v = b.op(slicing.concat, v, ones, axis=3)
    if attrs["causal"]:
        plain = {"feature_map": "none", "normalizer": "none", "epsilon": 0.0}
        out, state = b.multi(node.op, q, k, v, *node.inputs[3:6], **{**attrs, **plain})
    else:
        out, state = _all_at_once(node, q, k, v, b)
    if not is_sum:
        return [out, state]
    spans = (((0,), (E,)), ((E,), (E + 1,)))
    made, total = (
        b.op(slicing.slice_, out, starts=start, ends=end, axes=(3,), steps=(1,))
        for start, end in spans
    )
    if attrs["epsilon"]:
        total = b.op(arithmetic.add, total, b.constant(attrs["epsilon"], total.dtype))
    return [b.op(arithmetic.div, made, total), state]


def _all_at_once(node: Node, q: Value, k: Value, v: Value, b: Builder) -> tuple[Value, Value]:
    """Every query reads the state after the last position."""
    attrs, given = node.attrs, node.inputs[3]
    B, H, _, D = k.shape or ()
    S, E, G = (q.shape or ())[2], (v.shape or ())[3], attrs["kv_groups"]
    dtype = q.dtype
    state_dtype = dtype if given is None else given.dtype
    wide = DType.F64 if dtype is DType.F64 else DType.F32
    wide_k, wide_v, wide_q = (_as(b, x, wide) for x in (k, v, q))
    keys = b.op(reshaping.transpose, wide_k, perm=(0, 1, 3, 2))
    state = b.op(linalg.matmul, keys, wide_v)
    if given is not None:
        state = b.op(arithmetic.add, state, _as(b, given, wide))
    rows = b.op(reshaping.reshape, wide_q, shape=(B, H, G * S, D))
    scaled = b.op(arithmetic.mul, rows, b.constant(attrs["scale"], wide))
    out = b.op(linalg.matmul, scaled, state)
    if attrs["normalizer"] == "mean":
        means = [b.op(reduce.reduce_mean, x, axes=(2,), keepdims=True) for x in (wide_k, wide_v)]
        shared = b.op(linalg.matmul, scaled, b.op(reshaping.transpose, means[0], perm=(0, 1, 3, 2)))
        rest = b.op(arithmetic.sub, b.constant(1, wide), shared)
        T = (k.shape or ())[2]
        if isinstance(T, int):
            count = b.constant(max(T, 1), wide)
        else:
            count = b.op(cast.cast, b.op(sizes.shape, wide_k, start=2, end=3), to=wide)
        out = b.op(arithmetic.div, out, count)
        out = b.op(arithmetic.add, out, b.op(arithmetic.mul, rest, means[1]))
    out = b.op(reshaping.reshape, out, shape=(B, H * G, S, E))
    return _as(b, out, dtype), _as(b, state, state_dtype)


def _recurrence(node: Node, b: Builder) -> Sequence[Value]:
    """The recurrence alone: one position, chunks, or a scan over the positions."""
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
    wide = DType.F64 if q.dtype is DType.F64 else DType.F32  # the state accumulates rounding
    state, grouped, k, v = (_as(b, x, wide) for x in (state, grouped, k, v))
    decay, beta = (None if x is None else _as(b, x, wide) for x in (decay, beta))
    call = Call(b, grouped, k, v, state, decay, beta)
    by_position = node.attrs["chunk_size"] == 1 or (call.per_channel and beta is not None)
    if T == 1:
        out, final = one_step(call)
    elif by_position:
        out, final = _by_position(node, call)
    else:
        out, final = in_chunks(call, node.attrs["chunk_size"])
    if not by_position or T == 1:
        out = b.op(arithmetic.mul, out, b.constant(node.attrs["scale"], wide))
    out = b.op(reshaping.reshape, out, shape=(B, H * G, T, E))
    return [_as(b, out, q.dtype), _as(b, final, state_dtype)]


def _by_position(node: Node, c: Call) -> tuple[Value, Value]:
    """One scan over the positions; decay and beta are scanned too."""
    b = c.b
    scanned = [(c.q, 3), (c.k, 2), (c.v, 2)]
    scanned += [(_full(b, x, c.k, 2), 2) for x in (c.decay, c.beta) if x is not None]
    axes = tuple(axis for _, axis in scanned)
    final, out = b.node(
        control.scan, c.state, *(x for x, _ in scanned), num_outputs=2,
        bodies=(_step(b, node, c.state, scanned),),
        num_carried=1, num_scanned=len(scanned), num_captures=0,
        input_axes=axes, input_reversed=(0,) * len(axes),
        output_axes=(3,), output_reversed=(0,),
    ).outputs  # fmt: skip
    return out, final


def _full(b: Builder, x: Value, like: Value, axis: int) -> Value:
    """Returns `x` with the size of `like` along an axis."""
    shape, wanted = x.shape or (), (like.shape or ())[axis]
    if shape[axis] == wanted:
        return x
    return b.op(repeating.expand, x, shape=(*shape[:axis], wanted, *shape[axis + 1 :]))


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
