"""Attention written out: the operator's body, without an axis for heads where there is but one."""

from __future__ import annotations

from regraft.ir.builder import Builder
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, linalg, reshaping, softmax
from regraft.ir.ops.attention_body import attention_body, binding_window


def written_attention(node: Node, b: Builder) -> Value:
    """Returns the result of an `attention` node in standard operators."""
    operands = _one_head(node)
    return attention_body(node, b) if operands is None else _flat(operands, node, b)


def _one_head(node: Node) -> tuple[Value, Value, Value] | None:
    """Returns q, k and v of plain attention whose one head is an axis put in before, or None."""
    q, k, v, *others = node.inputs
    attrs = node.attrs
    if q is None or k is None or v is None or any(value is not None for value in others):
        return None
    if attrs["softcap"] or attrs["softmax_dtype"] is not None or attrs["kv_groups"] != 1:
        return None
    for value in (q, k, v):
        maker, shape = value.producer, value.shape
        if maker is None or maker.op is not reshaping.reshape or shape is None or shape[1] != 1:
            return None
        source = maker.inputs[0]
        if source is None or source.shape != (shape[0], *shape[2:]):
            return None
    if q.shape is None or k.shape is None:
        return None
    window = binding_window(attrs, (q.shape[2], k.shape[2]), None)
    return (q, k, v) if window == (-1, -1) else None


def _flat(operands: tuple[Value, Value, Value], node: Node, b: Builder) -> Value:
    """Builds it from [B, S, D]; cleanup cancels the reshapes against those that put the axis in."""
    q, k, v = (
        b.op(reshaping.reshape, x, shape=(shape[0], *shape[2:]))
        for x in operands
        if (shape := x.shape) is not None
    )
    if node.attrs["scale"] != 1.0:
        q = b.op(arithmetic.mul, q, b.constant(node.attrs["scale"], q.dtype))
    scores = b.op(linalg.matmul, q, b.op(reshaping.transpose, k, perm=(0, 2, 1)))
    out = b.op(linalg.matmul, b.op(softmax.softmax, scores, axis=-1), v)
    shape = node.output.shape
    if shape is None:
        raise AssertionError("attention has a shape")
    return b.op(reshaping.reshape, out, shape=shape)
