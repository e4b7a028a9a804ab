"""Forms of attention: written out, ONNX Attention-23, and ONNX Runtime's own kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from regraft.backends.onnx import ort_ops
from regraft.backends.onnx.legalize.costs import Features
from regraft.backends.onnx.legalize.site import Build, Limits
from regraft.backends.onnx.legalize.written import written_attention
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, attention, cast, fill, repeating, reshaping, rotary, sizes
from regraft.ir.ops.attention_body import binding_window
from regraft.ir.ops.finite import holds_lowest
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

_NATIVE_SINCE = 23
_HEADS_OUTSIDE = (0, 2, 1, 3)
_LENGTHS: tuple[int, ...] = (16, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class _Call:
    """An attention node whose positions are none or plain causal ones.

    Attributes:
        operands: q, k, v.
        mask: The mask, or None.
        heads: Heads of the queries and of the keys.
        size: Head size of queries and keys.
        causal: Whether the first query stands at the first key and sees nothing after it.
        is_self: Whether queries and keys have one length.
    """

    operands: tuple[Value, Value, Value]
    mask: Value | None
    heads: tuple[int, int]
    size: int
    causal: bool
    is_self: bool


def _call(node: Node) -> _Call | None:
    operands = attention.softmax_operands(node)
    if operands is None:
        return None
    q, k, v, mask, lengths, sinks, offset = operands
    if q is None or k is None or v is None or None in (q.shape, k.shape, v.shape):
        return None
    _, H, S, D = q.shape or ()
    _, K, T, _ = k.shape or ()
    attrs = node.attrs
    window = binding_window(attrs, (S, T), offset)
    is_plain = window == (-1, -1) or (
        attrs["window"] == (-1, 0) and attrs["causal_offset"] == 0 and offset is None
    )
    if (
        not isinstance(H, int) or not isinstance(K, int) or not isinstance(D, int)
        or lengths is not None or sinks is not None or not is_plain
        or attrs["mask_before_softcap"] or attrs["softmax_dtype"] is not None
        or q.dtype is not DType.F32
    ):  # fmt: skip
        return None
    return _Call((q, k, v), mask, (H, K), D, window != (-1, -1), S == T)


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """Where an `attention` stands; written out is the standard form."""

    name: str = "attention"
    roots: tuple[OpSpec, ...] = (attention.attention,)

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns causal, masked, grouped; the length of queries and the head size."""
        call = _call(node)
        if call is None:
            return None
        q = call.operands[0]
        kind = {
            "causal": _word(call.causal),
            "masked": _word(call.mask is not None),
            "grouped": _word(call.heads[0] != call.heads[1]),
            "rotary": _word(_rotated(q) is not None),
        }
        length = (q.shape or ())[2]
        return Features(kind, {"S": limits.sizes(length, _LENGTHS), "D": (call.size,)})

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns the forms that say the same; flat ones where the heads are split just before."""
        call = _call(node)
        found: dict[str, Build | None] = {"decomposed": lambda b: written_attention(node, b)}
        if call is None:
            return found
        v = call.operands[2]
        attrs = node.attrs
        is_flat = all(_flat_source(x) is not None for x in call.operands) and _is_merged(node)
        is_low = call.mask is not None and holds_lowest(call.mask)  # taken for -inf
        if limits.max_opset >= _NATIVE_SINCE and not is_low:
            found["native"] = lambda b: _native(node, call, b)
            if is_flat and (call.mask is None or call.mask.shape is not None):
                found["flat"] = lambda b: _flat(node, call, b)
        plain = call.mask is None and not attrs["softcap"] and is_flat and call.is_self
        same_size = (v.shape or ())[3] == call.size
        if plain and call.heads[0] == call.heads[1]:
            found["multi_head"] = lambda b: _multi_head(node, call, b)
        if plain and same_size and call.size % 8 == 0:
            found["group_query"] = lambda b: _group_query(node, call, b)
        return found


def _word(fact: bool) -> str:
    return "yes" if fact else "no"


def _flat_source(x: Value) -> Value | None:
    """Returns [B, S, H * D] of which [B, H, S, D] was split, looking through rotary embedding.

    Its sizes are known to be these: a reshape would stay otherwise, and ONNX Runtime infers wrong
    shapes for an Attention whose width it does not see.
    """
    node = x.producer
    rotated = _rotated(x)
    if rotated is not None:
        if not _has_flat_form(rotated) or rotated.inputs[0] is None:
            return None
        node = rotated.inputs[0].producer
    if node is None or node.op is not reshaping.transpose:
        return None
    if node.attrs["perm"] != _HEADS_OUTSIDE or node.inputs[0] is None:
        return None
    split = node.inputs[0].producer
    if split is None or split.op is not reshaping.reshape:
        return None
    flat = split.inputs[0]
    if flat is None or flat.shape is None or x.shape is None:
        return None
    B, H, S, D = x.shape
    return flat if flat.shape == (B, S, H * D) else None


def _rotated(x: Value) -> Node | None:
    """Returns the rotary embedding that makes a value, or None."""
    node = x.producer
    return node if node is not None and node.op is rotary.rotary_embedding else None


def _has_flat_form(node: Node) -> bool:
    """Whether the runtime's operator takes the tables of a rotary embedding as they are."""
    x, cos, _, positions = node.inputs
    if x is None or cos is None or x.shape is None or not isinstance(x.shape[1], int):
        return False
    if positions is not None:
        return positions.shape == (x.shape[0], x.shape[2])
    return cos.shape is not None and len(cos.shape) == 3 and cos.shape[0] == x.shape[0]


def _is_merged(node: Node) -> bool:
    """Whether the result goes to [B, S, H * E] and nowhere else."""
    users = node.output.users
    if node.output.num_uses != 1 or len(users) != 1 or users[0].op is not reshaping.transpose:
        return False
    if users[0].attrs["perm"] != _HEADS_OUTSIDE:
        return False
    merged = users[0].output.users
    return len(merged) == 1 and merged[0].op is reshaping.reshape and merged[0].output.rank == 3


def flattened(b: Builder, x: Value) -> Value:
    """Returns [B, H, S, D] as [B, S, H * D]; cleanup cancels it against the split."""
    rotated = _rotated(x)
    if rotated is not None and _has_flat_form(rotated):
        inner, cos, sin, positions = rotated.inputs
        if inner is not None and inner.shape is not None:
            heads = inner.shape[1]
            return b.op(
                ort_ops.flat_rotary, flattened(b, inner), cos, sin, positions,
                heads=heads, **rotated.attrs,
            )  # fmt: skip
    B, H, S, D = x.shape or ()
    return b.op(
        reshaping.reshape, b.op(reshaping.transpose, x, perm=_HEADS_OUTSIDE), shape=(B, S, H * D)
    )


def _unflatten(b: Builder, x: Value, heads: int) -> Value:
    B, S, width = x.shape or ()
    size = width // heads if isinstance(width, int) else width
    split = b.op(reshaping.reshape, x, shape=(B, S, heads, size))
    return b.op(reshaping.transpose, split, perm=_HEADS_OUTSIDE)


def _flat_attrs(node: Node, call: _Call) -> dict[str, object]:
    return {
        "heads": call.heads[0],
        "kv_heads": call.heads[1],
        "scale": node.attrs["scale"],
        "softcap": node.attrs["softcap"],
        "causal": call.causal,
    }


def _full_mask(call: _Call, b: Builder) -> Value | None:
    """Returns the mask in full size along queries and keys: runtimes broadcast the rest only."""
    mask = call.mask
    lengths = tuple((x.shape or ())[2] for x in call.operands[:2])
    if mask is None or mask.shape is None or mask.shape[-2:] == lengths:
        return mask
    return b.op(repeating.expand, mask, shape=(*mask.shape[:-2], *lengths))


def _native(node: Node, call: _Call, b: Builder) -> Value:
    operands = [*call.operands, _full_mask(call, b), *node.inputs[4:]]
    return b.op(ort_ops.native_attention, *operands, **node.attrs)


def _flat(node: Node, call: _Call, b: Builder) -> Value:
    operands = [flattened(b, x) for x in call.operands]
    out = b.op(ort_ops.flat_attention, *operands, _full_mask(call, b), **_flat_attrs(node, call))
    return _unflatten(b, out, call.heads[0])


def _multi_head(node: Node, call: _Call, b: Builder) -> Value:
    operands = [flattened(b, x) for x in call.operands]
    out = b.op(ort_ops.multi_head_attention, *operands, **_flat_attrs(node, call))
    return _unflatten(b, out, call.heads[0])


def _group_query(node: Node, call: _Call, b: Builder) -> Value:
    operands = [flattened(b, x) for x in call.operands]
    B, _, T, _ = call.operands[1].shape or ()
    past = _filled(b, (B, call.heads[1], 0, call.size), np.zeros((1,), np.float32))
    total = _size(b, call.operands[1], 2, T)
    last = b.op(arithmetic.sub, total, b.constant(np.int32(1)))
    last = b.op(repeating.expand, last, shape=(B,))
    out = b.op(
        ort_ops.group_query_attention, *operands, past, last, total, **_flat_attrs(node, call)
    )
    return _unflatten(b, out, call.heads[0])


def _filled(b: Builder, shape: tuple[DimLike, ...], value: object) -> Value:
    return b.op(fill.constant_of_shape, shape=shape, value=value)


def _size(b: Builder, x: Value, axis: int, size: DimLike) -> Value:
    """Returns a size as an i32 scalar."""
    if not isinstance(size, Dim):
        return b.constant(np.int32(size))
    length = b.op(sizes.shape, x, start=axis, end=axis + 1)
    scalar = b.op(reshaping.reshape, length, shape=())
    return b.op(cast.cast, scalar, to=DType.I32)
