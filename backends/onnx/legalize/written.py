"""Attention written out: the operator's body, in the axes that its operands have anyway.

The operator takes [B, H, S, D]. Where its operands are brought to that by reshapes, from windows
beside the batch or without an axis for heads, the products run in the axes from before.
"""

from __future__ import annotations

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, linalg, reshaping, softmax
from regraft.ir.ops.attention import softmax_operands
from regraft.ir.ops.attention_body import attention_body, binding_window

Sizes = tuple[DimLike, ...]


def written_attention(node: Node, b: Builder) -> Value:
    """Returns the result of an `attention` node in standard operators."""
    operands = _plain(node)
    if operands is None:
        return attention_body(node, b)
    lead = _leading_axes(operands, node)
    return attention_body(node, b) if lead is None else _along(lead, operands, node, b)


def _plain(node: Node) -> tuple[Value, Value, Value] | None:
    """Returns q, k and v of attention that is two products and a softmax, or None."""
    q, k, v, *others = softmax_operands(node) or (None, None, None)
    attrs = node.attrs
    if q is None or k is None or v is None or any(value is not None for value in others):
        return None
    if attrs["softcap"] or attrs["softmax_dtype"] is not None or attrs["kv_groups"] != 1:
        return None
    if q.shape is None or k.shape is None or v.shape is None or node.output.shape is None:
        return None
    if not q.shape[:2] == k.shape[:2] == v.shape[:2]:
        return None
    window = binding_window(attrs, (q.shape[2], k.shape[2]), None)
    return (q, k, v) if window == (-1, -1) else None


def _leading_axes(operands: tuple[Value, ...], node: Node) -> Sizes | None:
    """Returns axes to run in instead of [B, H], whose positions are in the same order, or None.

    They are those in which the one reader of the result wants it, or that the operands had before
    an axis for the only head was put in.
    """
    made = [_reshaped(value) for value in operands]
    if any(source is None for source in made):
        return None
    users = node.output.users
    if node.output.num_uses == 1 and users[0].op is reshaping.reshape:
        wanted = users[0].output.shape
        if wanted is not None and wanted[-2:] == (node.output.shape or ())[-2:]:
            return wanted[:-2]
    for value, source in zip(operands, made, strict=True):
        shape = value.shape or ()
        if source is None or shape[1] != 1 or source.shape != (shape[0], *shape[2:]):
            return None
    return (operands[0].shape or ())[:1]


def _reshaped(value: Value) -> Value | None:
    """Returns what a value is a reshape of, or None."""
    maker = value.producer
    return maker.inputs[0] if maker is not None and maker.op is reshaping.reshape else None


def _along(lead: Sizes, operands: tuple[Value, ...], node: Node, b: Builder) -> Value:
    """Builds it from [*lead, S, D]; cleanup cancels the reshapes against those of the operands."""
    placed = [
        b.op(reshaping.reshape, x, shape=(*lead, *shape[2:]))
        for x in operands
        if (shape := x.shape) is not None
    ]
    order = _common_order(operands, placed)
    if order is not None:  # the products run before the leading axes change places
        placed = order[1]
    q, k, v = placed
    if node.attrs["scale"] != 1.0:
        q = b.op(arithmetic.mul, q, b.constant(node.attrs["scale"], q.dtype))
    last = len(lead)
    swapped = (*range(last), last + 1, last)
    scores = b.op(linalg.matmul, q, b.op(reshaping.transpose, k, perm=swapped))
    out = b.op(linalg.matmul, b.op(softmax.softmax, scores, axis=-1), v)
    if order is not None:
        out = b.op(reshaping.transpose, out, perm=order[0])
    return b.op(reshaping.reshape, out, shape=node.output.shape)


def _common_order(
    operands: tuple[Value, ...], placed: list[Value]
) -> tuple[tuple[int, ...], list[Value]] | None:
    """Returns how the leading axes of all operands were transposed, and from what, or None."""
    perms, before = set(), []
    for value, wanted in zip(operands, placed, strict=True):
        source = _reshaped(value)
        maker = None if source is None else source.producer
        if maker is None or maker.op is not reshaping.transpose:
            return None
        x = maker.inputs[0]
        if x is None or maker.output.shape != wanted.shape:
            return None
        perms.add(maker.attrs["perm"])
        before.append(x)
    perm = perms.pop() if len(perms) == 1 else ()
    last = len(perm) - 2
    return (perm, before) if last > 0 and perm[last:] == (last, last + 1) else None
