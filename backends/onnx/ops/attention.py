"""Emitters of attention: native where the runtime's operator says the same, else simpler operators.

ONNX aligns a causal mask by its own cache inputs, and runtimes differ on windows. Positions that
are not the plain causal ones are therefore written as a mask.
"""

from __future__ import annotations

import numpy as np

from regraft.backends.onnx import ort_recurrence_ops as recurrences
from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    attention,
    linear_attention,
    logical,
    repeating,
    rotary,
)
from regraft.ir.ops.attention_body import binding_window, visible_mask
from regraft.ir.ops.attention_weights import is_softmax
from regraft.ir.ops.finite import holds_lowest
from regraft.ir.types import DType

_NATIVE_SINCE, _LENGTHS_SINCE, _RECURRENCE_SINCE = 23, 24, 27


def emit_native(e: EmitContext) -> None:
    """Emits ONNX Attention, the mask written out where positions are not the plain causal ones."""
    node = e.node
    attrs = node.attrs
    q, k, mask, lengths, sinks = (node.inputs[i] for i in (0, 1, 3, 4, 5))
    is_low = mask is not None and holds_lowest(mask)  # ONNX Runtime takes it for -inf
    if sinks is not None or attrs["mask_before_softcap"] or is_low or not is_softmax(attrs):
        e.inline()
        return
    if q is None or k is None or q.shape is None or k.shape is None:
        raise UnsupportedError(
            f"attention ({', '.join(node.loc[:1])}) of unknown shape cannot be emitted"
        )
    has_full_mask = mask is None or _is_full(mask, (q.shape[2], k.shape[2]))
    is_cache = lengths is not None and e.opset >= _LENGTHS_SINCE
    windowed = binding_window(attrs, (q.shape[2], k.shape[2]), node.inputs[6]) != (-1, -1)
    plain = attrs["window"] == (-1, 0) and (
        (attrs["causal_offset"] == 0 and lengths is None)
        or (is_cache and _is_aligned_to_lengths(node))
    )
    if not has_full_mask or (windowed and not plain) or (lengths is not None and not is_cache):
        e.inline(_with_full_mask)
        return
    names = [e.name(value) for value in node.inputs[:4]]
    if lengths is not None:
        names += ["", "", e.name(lengths)]
    while not names[-1]:
        names.pop()
    e.emit(
        "Attention", names,
        scale=attrs["scale"],
        is_causal=True if windowed else None,
        softcap=attrs["softcap"] or None,
        softmax_precision=attrs["softmax_dtype"],
    )  # fmt: skip


def _is_full(mask: Value, sizes: tuple[DimLike, DimLike]) -> bool:
    """Whether the last axes of a mask have these sizes, by their types or because they are made so.

    Sizes that inference cannot tell to be equal keep their own symbol when they are expanded.
    """
    if mask.shape is not None and mask.shape[-2:] == sizes:
        return True
    maker = mask.producer
    return (
        maker is not None
        and maker.op is repeating.expand
        and tuple(maker.attrs["shape"] or ())[-2:] == sizes
    )


def _is_aligned_to_lengths(node: Node) -> bool:
    """Whether causal_offset is kv_lengths - S, which ONNX takes for an external cache."""
    q, lengths, offset = node.inputs[0], node.inputs[4], node.inputs[6]
    producer = None if offset is None else offset.producer
    if producer is None or producer.op is not arithmetic.sub or producer.inputs[0] is not lengths:
        return False
    amount = producer.inputs[1]
    wanted = None if q is None or q.shape is None else q.shape[2]
    return amount is not None and amount.content in (wanted, (wanted,))


def _with_full_mask(node: Node, b: Builder) -> Value:
    """Writes window and lengths as a mask, whose last axes runtimes want in full size."""
    q, k, v, mask, lengths, _, offset = attention.softmax_operands(node) or (None,) * 7
    if q is None or k is None or q.shape is None or k.shape is None or q.dtype is None:
        raise AssertionError("attention without a shape")
    sizes = (q.shape[2], k.shape[2])
    visible = visible_mask(b, node.attrs, sizes, lengths, offset)
    if visible is not None and mask is not None:
        if mask.dtype is DType.BOOL:
            visible = b.op(logical.logical_and, mask, visible)
        else:
            visible = b.op(logical.where, visible, mask, b.constant(-np.inf, mask.dtype))
    mask = mask if visible is None else visible
    if mask is None or mask.shape is None:
        raise AssertionError("attention without a mask")
    if not _is_full(mask, sizes):
        mask = b.op(repeating.expand, mask, shape=(*mask.shape[:-2], *sizes))
    attrs = {**node.attrs, "causal_offset": None}
    return b.op(attention.attention, q, k, v, mask, **attrs)


def _rotary(e: EmitContext) -> None:
    x, cos, _, _ = e.node.inputs
    if x is None or cos is None or x.shape is None or cos.shape is None:
        raise UnsupportedError(
            f"rotary_embedding ({', '.join(e.node.loc[:1])}) of unknown shape cannot be emitted"
        )
    attrs = e.node.attrs
    common = {"interleaved": attrs["interleaved"], "rotary_embedding_dim": attrs["rotary_size"]}
    if _is_rotary_inlined(e.node, e.opset, e.profile):
        e.inline()
    elif _is_rotary_native(e.node, e.opset):
        e.emit("RotaryEmbedding", e.inputs, **common)
    else:
        H = x.shape[1]
        x_, cos_, sin_, positions_ = e.inputs
        names = [x_, positions_, cos_, sin_]
        num_heads = H if isinstance(H, int) else None
        e.emit("RotaryEmbedding", names, domain="com.microsoft", num_heads=num_heads, **common)


def _is_rotary_native(node: Node, opset: int) -> bool:
    """Whether ONNX RotaryEmbedding takes the tables as they are."""
    x, cos, _, positions = node.inputs
    if opset < _NATIVE_SINCE:
        return False
    if positions is not None:
        return True
    if x is None or cos is None or x.shape is None or cos.shape is None:
        return False
    return len(cos.shape) == 3 and cos.shape[0] == x.shape[0]


def _is_rotary_inlined(node: Node, opset: int, profile: str) -> bool:
    """Whether neither ONNX nor the runtime's own operator takes the node."""
    x, _, _, positions = node.inputs
    if _is_rotary_native(node, opset):
        return False
    has_kernel = (
        profile != "onnx"
        and positions is not None
        and x is not None
        and x.shape is not None
        and positions.shape == (x.shape[0], x.shape[2])
    )
    return not has_kernel


def _is_recurrence_inlined(node: Node, opset: int, profile: str) -> bool:
    """Whether more than the recurrence is asked for, or the operator is not there."""
    is_there = profile == "onnx" and opset >= _RECURRENCE_SINCE
    return not is_there or not recurrences.is_kernel(node)


def _linear_attention(e: EmitContext) -> None:
    if _is_recurrence_inlined(e.node, e.opset, e.profile):
        e.inline()
    else:
        e.inline(recurrences.kernel)


EMITS: tuple[Emit, ...] = (
    Emit(attention.attention, {13: EmitContext.inline, _NATIVE_SINCE: emit_native}),
    Emit(rotary.rotary_embedding, {13: _rotary}, inlined=_is_rotary_inlined),
    Emit(
        linear_attention.linear_attention,
        {13: EmitContext.inline, _RECURRENCE_SINCE: _linear_attention},
        inlined=_is_recurrence_inlined,
    ),
)
