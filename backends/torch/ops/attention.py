"""Emitters of attention, rotary embedding and linear attention."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted
from regraft.backends.torch.library import attending, recurrence, rotating, weighing
from regraft.backends.torch.ops.params import call_text, float_text, operand, static_sizes
from regraft.ir.graph import Value
from regraft.ir.ops import attention as ops
from regraft.ir.ops import linear_attention, rotary
from regraft.ir.ops.attention_body import binding_window
from regraft.ir.ops.attention_weights import NORMALIZERS, is_softmax
from regraft.ir.types import DType


def _in_type_of(e: EmitContext, idx: int, like: Value) -> str:
    value = operand(e, idx)
    if value.dtype is like.dtype or like.dtype is None:
        return e.input(idx)
    return f"{e.input(idx)}.to({e.dtype(like.dtype)})"


def _emit_attention(e: EmitContext) -> str:
    attrs, q = e.node.attrs, operand(e, 0)
    softcap, wide = attrs["softcap"], attrs["softmax_dtype"]
    operands = [e.input(0), _in_type_of(e, 1, q), _in_type_of(e, 2, q)]
    sinks = e.node.operand("sinks")
    if not is_softmax(attrs):
        return _emit_weighed(e, operands)
    is_native = softcap <= 0 and sinks is None and (wide in (None, q.dtype) or _is_half(q.dtype))
    visible = _visible(e)
    if is_native:
        mask = e.node.operand("mask")
        text = None if mask is None else _mask(e, mask, q)
        where: dict[str, str | None]
        if visible == "causal" and text is None:
            where = {"is_causal": "True"}
        else:
            shown = _window_text(e) if visible == "causal" else visible
            if text is not None and shown is not None:
                text = f"{e.helper(attending.hide_keys)}({text}, {shown})"
            where = {"attn_mask": text or shown}
        return call_text(
            "F.scaled_dot_product_attention",
            *operands,
            **where,
            scale=float_text(attrs["scale"]),
            enable_gqa="True" if attrs["kv_groups"] != 1 else None,
        )
    shown = _window_text(e) if visible == "causal" else visible
    added = e.optional(3) or "None"
    settings = {
        "visible": shown,
        "sinks": None if sinks is None else e.name(sinks),
        "softcap": repr(softcap) if softcap > 0 else None,
        "mask_first": "True" if attrs["mask_before_softcap"] else None,
        "softmax_dtype": None if wide is None else e.dtype(wide),
    }
    call = e.helper(attending.attend)
    return call_text(call, *operands, added, float_text(attrs["scale"]), **settings)


def _emit_weighed(e: EmitContext, operands: list[str]) -> str:
    """Returns the call for a modifier or normalizer that is not a plain softmax."""
    attrs = e.node.attrs
    visible = _visible(e)
    placed = {name: e.node.operand(name) for name in ("sinks", "alpha", "gates")}
    parameters = NORMALIZERS[attrs["normalizer"]].read(attrs["normalizer_parameters"]).values()
    modifier, budget = attrs["modifier"], sum(attrs["modifier_parameters"])
    softcap, wide = attrs["softcap"], attrs["softmax_dtype"]
    settings = {
        "modifier": None if modifier == "none" else f'"{modifier}"',
        "budget": float_text(budget) if budget else None,
        "visible": _window_text(e) if visible == "causal" else visible,
        **{name: None if value is None else e.name(value) for name, value in placed.items()},
        "offset": offset_text(e) if modifier == "selective" else None,
        "softcap": repr(softcap) if softcap > 0 else None,
        "mask_first": "True" if attrs["mask_before_softcap"] else None,
        "softmax_dtype": None if wide is None else e.dtype(wide),
    }
    numbers = ", ".join(map(float_text, parameters))
    return call_text(
        e.helper(weighing.attend_with),
        *operands,
        e.optional(3) or "None",
        float_text(attrs["scale"]),
        f'"{attrs["normalizer"]}"',
        f"({numbers},)" if numbers else "()",
        **settings,
    )


def _is_half(dtype: DType | None) -> bool:
    """Whether PyTorch's softmax of this type is at least as wide as any that is asked for."""
    return dtype is DType.F16 or dtype is DType.BF16


def _mask(e: EmitContext, mask: Value, q: Value) -> str:
    """Returns the mask as PyTorch takes it: of 2 or 4 axes, bool or of the type of q."""
    name = e.name(mask)
    if mask.dtype is not DType.BOOL and mask.dtype is not q.dtype and q.dtype is not None:
        name = f"{name}.to({e.dtype(q.dtype)})"
    if mask.rank == 3:
        return f"{name}.unsqueeze(0)"
    if mask.rank is not None and mask.rank < 2:
        return f"{name}.reshape({', '.join(['1'] * (2 - mask.rank))}, -1)"
    return name


def _visible(e: EmitContext) -> str | None:
    """Returns which keys positions leave visible: None (all), "causal", or a tensor."""
    attrs = e.node.attrs
    offset, lengths = e.node.operand("causal_offset"), e.node.operand("kv_lengths")
    q, k = operand(e, 0), operand(e, 1)
    if attrs["causal_offset"] is None and offset is None and lengths is None:
        return None
    window = attrs["window"]
    if q.shape is not None and k.shape is not None:
        window = binding_window(attrs, (q.shape[2], k.shape[2]), offset)
    elif attrs["causal_offset"] is None and offset is None:
        window = (-1, -1)
    if lengths is None and window == (-1, -1):
        return None
    if lengths is None and attrs["causal_offset"] == 0 and window == (-1, 0):
        return "causal"
    return _window_text(e, window)


def _window_text(e: EmitContext, window: tuple[int, int] = (-1, 0)) -> str:
    lengths = e.node.operand("kv_lengths")
    call, start = e.helper(attending.visible_keys), offset_text(e)
    tail = "" if lengths is None else f", {e.name(lengths)}"
    return f"{call}({e.input(0)}, {e.input(1)}, {start}, {window[0]}, {window[1]}{tail})"


def offset_text(e: EmitContext) -> str:
    """Returns the key position of the first query."""
    attrs, offset = e.node.attrs, e.node.operand("causal_offset")
    start = "0"
    if attrs["causal_offset"] is not None:
        known = static_sizes(e, "causal_offset")
        if known is None:
            q, k = e.input(0), e.input(1)
            known_text = f"{k}.shape[2] - {q}.shape[2]"
            start = known_text if _is_bottom_aligned(e) else e.size(attrs["causal_offset"])
        else:
            start = e.size(known[0])
    elif offset is not None:
        start = e.name(offset)
    return start


def _is_bottom_aligned(e: EmitContext) -> bool:
    q, k = operand(e, 0).shape, operand(e, 1).shape
    return q is not None and k is not None and bool(e.attr("causal_offset") == k[2] - q[2])


def _emit_rotary(e: EmitContext) -> str:
    x, size = operand(e, 0), e.attr("rotary_size")
    name = rotating.rotate_pairs if e.attr("interleaved") else rotating.rotate_halves
    tables = [e.input(1), e.input(2)]
    if e.optional(3) is not None:
        tables = [f"{table}[{e.optional(3)}]" for table in tables]
    if e.optional(3) is not None or operand(e, 1).rank == 3:
        tables = [f"{table}.unsqueeze(1)" for table in tables]
    partial = size is not None and (x.shape is None or x.shape[-1] != size)
    tail = f", {size}" if partial else ""
    return f"{e.helper(name)}({e.input(0)}, {', '.join(tables)}{tail})"


def _emit_linear_attention(e: EmitContext) -> Emitted:
    arguments = e.inputs + ["None"] * (6 - len(e.inputs))
    kinds = {
        name: None if e.attr(name) == "none" else f'"{e.attr(name)}"'
        for name in ("feature_map", "normalizer")
    }
    return call_text(
        e.helper(recurrence.linear_attention),
        *(text or "None" for text in arguments),
        float_text(e.attr("scale")),
        str(e.attr("kv_groups")),
        **kinds,
        causal=None if e.attr("causal") else "False",
        epsilon=float_text(e.attr("epsilon")) if e.attr("epsilon") else None,
        chunk_size=str(e.attr("chunk_size")) if e.attr("chunk_size") else None,
    )


EMITS = (
    Emit(ops.attention, _emit_attention),
    Emit(rotary.rotary_embedding, _emit_rotary),
    Emit(linear_attention.linear_attention, _emit_linear_attention),
)
