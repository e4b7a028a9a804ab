"""Emitters of operators as calls of kernels, where a kernel takes the operands as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from regraft.backends.torch.emitter import Emit, EmitContext, EmitTable, Emitted
from regraft.backends.torch.ops.attention import offset_text
from regraft.backends.torch.ops.params import axis_of, call_text, float_text
from regraft.backends.triton.entmax_emits import entmax_operands, is_sparse_attention
from regraft.backends.triton.expert_emits import expert_emit
from regraft.backends.triton.kernel_calls import KernelCalls, before, fits
from regraft.backends.triton.kernels import (
    attending,
    entmax_backward,
    norms,
    rope,
    softmax,
    stepping,
)
from regraft.backends.triton.low_bit_emits import low_bit_emit, low_bit_experts_emit
from regraft.backends.triton.recurrence_emits import recurrence_emit
from regraft.ir.graph import Node, Value
from regraft.ir.ops import attention as attention_ops
from regraft.ir.ops import linear_attention as linear_attention_ops
from regraft.ir.ops import moe as moe_ops
from regraft.ir.ops import norm as norm_ops
from regraft.ir.ops import rotary as rotary_ops
from regraft.ir.ops import softmax as softmax_ops
from regraft.ir.ops.attention_weights import NORMALIZERS
from regraft.ir.opspec import Attr, AttrKind
from regraft.ir.types import DType

unified_attention = replace(
    attention_ops.attention,
    name="unified_attention",
    source="what attention to a cache becomes in a package, where a unified maximum was found",
    # phi, least and most difference from it
    attrs=(*attention_ops.attention.attrs, Attr("unified", AttrKind.FLOATS)),
)

LONGEST_ROW = 16384
"""Elements that a program holds in registers."""


def kernel_families(
    families: Sequence[tuple[Emit, ...]], calls: KernelCalls
) -> tuple[tuple[Emit, ...], ...]:
    """Returns emitters that call kernels where one fits, and do as before elsewhere.

    Args:
        families: Emitters of PyTorch.
        calls: Notes which kernels are called.
    """
    table = EmitTable(*families)

    def layer(e: EmitContext) -> Emitted:
        if not is_row_norm(e.node):
            return before(table, e)
        call = calls.name(norms.layer_norm)
        operands = ", ".join(e.inputs[:3])
        return [f"{call}({operands}, eps={e.attr('epsilon')!r})", *_unused(e)]

    def rms(e: EmitContext) -> Emitted:
        if not is_row_norm(e.node):
            return before(table, e)
        call = calls.name(norms.rms_norm)
        return [f"{call}({e.input(0)}, {e.input(1)}, {_eps(e)})", *_unused(e)]

    def soft(e: EmitContext) -> Emitted:
        x = e.node.inputs[0]
        if not _is_last(x, e.attr("axis")) or not fits(x):
            return before(table, e)
        width = None if x is None or x.shape is None else x.shape[-1]
        # what no program holds is summed without rescaling by a maximum
        passes = ", two_pass=True" if isinstance(width, int) and width > LONGEST_ROW else ""
        return f"{calls.name(softmax.softmax)}({e.input(0)}{passes})"

    def turn(e: EmitContext) -> Emitted:
        if not is_whole_rotation(e.node):
            return before(table, e)
        settings = ", interleaved=True" if e.attr("interleaved") else ""
        tables = ", ".join(tables_of(e))
        return f"{calls.name(rope.rotary)}({e.input(0)}, {tables}{settings})"

    own = {
        attention_ops.attention: _attend(table, calls),
        unified_attention: lambda e: _step(e, calls),
        linear_attention_ops.linear_attention: recurrence_emit(table, calls),
        moe_ops.moe: expert_emit(table, calls),
        norm_ops.layer_norm: layer,
        norm_ops.rms_norm: rms,
        softmax_ops.softmax: soft,
        rotary_ops.rotary_embedding: turn,
    }
    rest = tuple(tuple(row for row in family if row.spec not in own) for family in families)
    rows = tuple(Emit(spec, emitter) for spec, emitter in own.items())
    return (*rest, (*rows, low_bit_emit(calls), low_bit_experts_emit(calls)))


def _attend(table: EmitTable, calls: KernelCalls) -> Callable[[EmitContext], Emitted]:
    def attend(e: EmitContext) -> Emitted:
        if is_sparse_attention(e.node):
            return f"{calls.name(entmax_backward.entmax_attention)}({entmax_operands(e)})"
        if not is_tiled_attention(e.node):
            return before(table, e)
        function = stepping.attention_with_cache if is_step(e.node) else attending.attention
        return f"{calls.name(function)}({_attention_operands(e)})"

    return attend


def _step(e: EmitContext, calls: KernelCalls) -> str:
    operands = f"{_attention_operands(e)}, unified={e.attr('unified')}"
    return f"{calls.name(stepping.attention_with_cache)}({operands})"


def _unused(e: EmitContext) -> list[str]:
    return ["None" for _ in e.node.outputs[1:]]


def _eps(e: EmitContext) -> str:
    return f"eps={float_text(e.attr('epsilon'))}"


def is_row_norm(node: Node) -> bool:
    """Whether a norm is one of rows with a gain per column, and no statistic of it is read."""
    x, scale, *rest = node.inputs
    bias = [value for value in rest if value is not None]
    if x is None or x.shape is None or not fits(x, scale, *bias):
        return False
    gains = [value for value in (scale, *bias) if value is not None]
    return (
        _is_last(x, node.attrs["axis"])
        and all(value.shape == x.shape[-1:] for value in gains)
        and not any(value.num_uses for value in node.outputs[1:])
    )


def _is_last(x: Value | None, axis: int) -> bool:
    return x is not None and bool(x.rank) and axis_of(x, axis) == (x.rank or 0) - 1


def is_tiled_attention(node: Node) -> bool:
    """Whether a kernel computes an attention: softmax or clipped weights of whole heads."""
    attrs, mask = node.attrs, node.operand("mask")
    parameters = NORMALIZERS[attrs["normalizer"]].read(attrs["normalizer_parameters"])
    is_clipped = attrs["normalizer"] == "clipped"
    # low depends on how many keys a row has, or gives hidden keys weight
    if is_clipped and (parameters["alpha"] != 0 or parameters["gamma"] > 0):
        return False
    is_late = mask is None or mask.dtype is DType.BOOL or not attrs["mask_before_softcap"]
    return (
        (is_clipped or attrs["normalizer"] in ("softmax", "two_pass"))
        and attrs["modifier"] == "none"
        and (is_late or attrs["softcap"] == 0)
        and attrs["softmax_dtype"] is not DType.F64
        and fits(*node.inputs[:3])
        and all(value is not None and value.rank == 4 for value in node.inputs[:3])
        and (mask is None or mask.rank is not None)
    )


def is_step(node: Node) -> bool:
    """Whether an attention may have one query and more keys: that of a decoder with states."""
    q, k = node.inputs[:2]
    if q is None or k is None or q.shape is None or k.shape is None:
        return False
    is_one = not isinstance(q.shape[2], int) or q.shape[2] == 1
    is_longer = q.shape[2] != k.shape[2]
    return is_one and is_longer and node.attrs["normalizer"] != "clipped"


def _attention_operands(e: EmitContext) -> str:
    """Returns the operands of `kernels.attention`; defaults are left out."""
    attrs, mask = e.node.attrs, e.node.operand("mask")
    lengths, sinks = e.node.operand("kv_lengths"), e.node.operand("sinks")
    is_placed = attrs["causal_offset"] is not None or e.node.operand("causal_offset") is not None
    offset = offset_text(e) if is_placed else "0"
    parameters = NORMALIZERS[attrs["normalizer"]].read(attrs["normalizer_parameters"])
    clip = (parameters["gamma"], parameters["zeta"]) if "zeta" in parameters else (0.0, 1.0)
    softcap = attrs["softcap"]
    return call_text(
        "",
        *[e.input(idx) for idx in range(3)],
        *([] if mask is None else [e.name(mask)]),
        scale=float_text(attrs["scale"]),
        offset=None if offset == "0" else offset,
        window=str(tuple(attrs["window"])) if is_placed else None,
        lengths=None if lengths is None else e.name(lengths),
        sinks=None if sinks is None else e.name(sinks),
        softcap=float_text(softcap) if softcap > 0 else None,
        clip=None if clip == (0.0, 1.0) else str(clip),
    )[1:-1]


def is_whole_rotation(node: Node) -> bool:
    """Whether a rotary embedding turns all channels of heads that a kernel takes."""
    x, cos, sin = node.inputs[:3]
    size = node.attrs["rotary_size"]
    if x is None or cos is None or sin is None or x.shape is None:
        return False
    is_whole = size is None or x.shape[-1] == size
    # angles in another dtype make a product in that dtype, which PyTorch rounds once more
    return is_whole and x.rank == 4 and fits(x, cos, sin)


def tables_of(e: EmitContext) -> list[str]:
    """Returns cos and sin of the positions in x: [S, R/2] or [B, S, R/2]."""
    positions = e.optional(3)
    if positions is None:
        return [e.input(1), e.input(2)]
    return [f"{table}[{positions}]" for table in (e.input(1), e.input(2))]
