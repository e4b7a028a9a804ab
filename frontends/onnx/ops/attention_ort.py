"""Importers of ONNX Runtime's attention operators, in the forms that say what `attention` says."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.frontends.onnx.ops.attention import merge_heads, split_heads
from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, exactdiv, known_equal
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, attention, cast, logical, reshaping, slicing
from regraft.ir.types import DType

_MICROSOFT = "com.microsoft"


def _shape(value: Value | None) -> tuple[DimLike, ...]:
    return () if value is None or value.shape is None else value.shape


def _scale(item: NodeImport, size: DimLike) -> float | None:
    scale = item.attr("scale", 0.0)
    if scale:
        return float(scale)
    return size**-0.5 if isinstance(size, int) else None


def _multi_head(item: NodeImport) -> Value | Sequence[Value]:
    """Separate q, k, v of rank 3, with biases, masks and an additive bias; no packing, no past."""
    q, k, v, bias, padding, addend = (item.input(i) for i in range(6))
    heads = item.attr("num_heads")
    flat = [x for x in (q, k, v) if x is not None and len(_shape(x)) == 3]
    if (
        q is None or len(flat) != 3 or not heads or q.dtype is None
        or any(item.input(i) is not None for i in range(6, len(item.inputs)))
        or item.num_outputs > 1
    ):  # fmt: skip
        return item.opaque()
    scale = _scale(item, exactdiv(_shape(q)[2], heads))
    visible = None if padding is None else _key_mask(item.b, padding)
    if scale is None or (padding is not None and visible is None):
        return item.opaque()
    b = item.b
    if bias is not None:
        flat = _biased(b, flat, bias)
    causal = item.attr("unidirectional", 0)
    if causal and not known_equal(_shape(flat[0])[1], _shape(flat[1])[1]):
        return item.opaque()  # which key the first query stands at depends on the lengths
    mask = addend
    if visible is not None:
        hidden = b.constant(item.attr("mask_filter_value", -10000.0), q.dtype)
        zero = b.constant(0.0, q.dtype)
        mask = b.op(logical.where, visible, zero, hidden)
        mask = mask if addend is None else b.op(arithmetic.add, mask, addend)
    split = [split_heads(b, x, heads) for x in flat]
    out = b.op(attention.attention, *split, mask, scale=scale, causal_offset=0 if causal else None)
    return merge_heads(b, out)


def _biased(b: Builder, flat: Sequence[Value], bias: Value) -> list[Value]:
    """Adds the parts of one bias [sum of the widths] to q, k and v."""
    out, start = [], 0
    for x in flat:
        end: DimLike = start + _shape(x)[2]
        part = b.op(slicing.slice_, bias, starts=(start,), ends=(end,), axes=(0,), steps=(1,))
        out.append(b.op(arithmetic.add, x, part))
        start = end  # type: ignore[assignment]  # sizes add up
    return out


def _key_mask(b: Builder, mask: Value) -> Value | None:
    """Returns a mask of ones and zeros [B, T] or [B, S, T] as bool [B, 1, 1 or S, T]."""
    if mask.rank not in (2, 3):
        return None
    axes = (1, 2) if mask.rank == 2 else (1,)
    return b.op(cast.cast, b.op(reshaping.unsqueeze, mask, axes=axes), to=DType.BOOL)


def _group_query(item: NodeImport) -> Sequence[Value | None]:
    """Separate q, k, v whose past is empty and whose sequences all have full length."""
    q, k, v, past_k, past_v, last, total = (item.input(i) for i in range(7))
    heads, kv_heads = item.attr("num_heads"), item.attr("kv_num_heads")
    shapes = [_shape(x) for x in (q, k, v)]
    empty = all(past is None or _shape(past)[2:3] == (0,) for past in (past_k, past_v))
    if (
        q is None or k is None or v is None or any(len(shape) != 3 for shape in shapes)
        or not heads or not kv_heads or heads % kv_heads or not empty or q.dtype is None
        or any(item.input(i) is not None for i in range(7, len(item.inputs)))
        or item.attr("do_rotary", 0) or item.attr("local_window_size", -1) != -1
        or not _is_full(item, last, total, shapes[1][1]) or shapes[0][1] != shapes[1][1]
    ):  # fmt: skip
        return item.opaque()
    scale = _scale(item, exactdiv(shapes[0][2], heads))
    if scale is None:
        return item.opaque()
    b = item.b
    keys, values = (split_heads(b, x, kv_heads) for x in (k, v))
    out = b.op(
        attention.attention, split_heads(b, q, heads), keys, values,
        scale=scale,
        kv_groups=heads // kv_heads,
        softcap=max(item.attr("softcap", 0.0), 0.0),
        causal_offset=0 if item.attr("causal", 1) else None,
    )  # fmt: skip
    return merge_heads(b, out), keys, values


def _is_full(item: NodeImport, last: Value | None, total: Value | None, length: DimLike) -> bool:
    """Whether every sequence is known to have `length` keys."""
    if last is None or total is None:
        return False
    whole = total.content[0] if isinstance(total.content, tuple) else total.content
    if whole is None or not known_equal(whole, length):
        return False
    return _uniform_content(last) == length - 1


def _uniform_content(value: Value) -> DimLike | None:
    """Returns the one number that an integer tensor repeats, or None."""
    node = value.producer
    while node is not None and value.content is None and node.inputs and node.inputs[0] is not None:
        if node.op.name != "expand":
            return None
        value = node.inputs[0]
        node = value.producer
    content = value.content
    if isinstance(content, tuple):
        return content[0] if content and all(item == content[0] for item in content) else None
    return content


IMPORTS: tuple[Import, ...] = (
    Import("MultiHeadAttention", {1: _multi_head}, _MICROSOFT),
    Import("GroupQueryAttention", {1: _group_query}, _MICROSOFT),
)
