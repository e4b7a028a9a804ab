"""Emitters of the target level: operators that only ONNX Runtime has, and flat attention."""

from __future__ import annotations

import numpy as np

from regraft.backends.onnx import ort_experts_ops as experts
from regraft.backends.onnx import ort_ops as ops
from regraft.backends.onnx import ort_quant_ops as quantized
from regraft.backends.onnx import ort_recurrence_ops as recurrences
from regraft.backends.onnx import ort_table_ops as tables
from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.backends.onnx.ops.attention import emit_native
from regraft.backends.onnx.ops.moe import by_token, emit_kernel, gated_fields
from regraft.ir.graph import Node

_MICROSOFT = "com.microsoft"
_NATIVE_SINCE = 23


def _flat_attention(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "Attention", e.inputs,
        q_num_heads=attrs["heads"],
        kv_num_heads=attrs["kv_heads"],
        scale=attrs["scale"],
        is_causal=True if attrs["causal"] else None,
        softcap=attrs["softcap"] or None,
    )  # fmt: skip


def _multi_head(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "MultiHeadAttention", e.inputs, domain=_MICROSOFT,
        num_heads=attrs["heads"],
        scale=attrs["scale"],
        unidirectional=True if attrs["causal"] else None,
    )  # fmt: skip


def _group_query(e: EmitContext) -> None:
    q, k, v, past, last, total = e.inputs
    attrs = e.node.attrs
    # both present results must be named
    outputs = [e.name(e.node.output), e.temp("present_key"), e.temp("present_value")]
    e.emit(
        "GroupQueryAttention", [q, k, v, past, past, last, total], outputs, domain=_MICROSOFT,
        num_heads=attrs["heads"],
        kv_num_heads=attrs["kv_heads"],
        scale=attrs["scale"],
        softcap=attrs["softcap"] or None,
        causal=None if attrs["causal"] else 0,
    )  # fmt: skip


def _flat_rotary(e: EmitContext) -> None:
    x, cos, sin, *rest = e.inputs
    attrs = e.node.attrs
    common = {
        "interleaved": attrs["interleaved"],
        "rotary_embedding_dim": attrs["rotary_size"],
        "num_heads": attrs["heads"],
    }
    if e.opset >= _NATIVE_SINCE:
        e.emit("RotaryEmbedding", [x, cos, sin, *rest], **common)
        return
    e.emit("RotaryEmbedding", [x, *rest, cos, sin], domain=_MICROSOFT, **common)


def _rotary_min_opset(node: Node) -> int:
    positions = node.inputs[3]
    return 13 if positions is not None else _NATIVE_SINCE


def _bias_gelu(e: EmitContext) -> None:
    e.emit("FastGelu" if e.node.attrs["tanh"] else "BiasGelu", e.inputs, domain=_MICROSOFT)


def _skip_norm(e: EmitContext, op_type: str) -> None:
    out, total = e.node.outputs
    outputs = [e.name(out)] + (["", "", e.name(total)] if total.num_uses else [])
    e.emit(op_type, e.inputs, outputs, domain=_MICROSOFT, epsilon=e.node.attrs["epsilon"])


def _integer_to_float(e: EmitContext) -> None:
    e.emit("MatMulIntegerToFloat", e.inputs, domain=_MICROSOFT)


def _nbits(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "MatMulNBits", e.inputs, domain=_MICROSOFT,
        K=attrs["k"], N=attrs["n"], bits=attrs["bits"], block_size=attrs["block_size"],
        accuracy_level=attrs["accuracy_level"],
    )  # fmt: skip


def _experts(e: EmitContext) -> None:
    attrs = e.node.attrs
    first, first_scale, last, last_scale, first_bias, last_bias = (
        e.name(value) for value in (*e.node.inputs[2:], None, None)[:6]
    )
    scores = shares = by_token(e, e.name(e.node.inputs[1]))
    # without weights of its own it renormalizes, whatever its attribute says
    normalized = attrs["renormalize"] or attrs["scoring"] == "topk_softmax"
    if attrs["scoring"] == "sigmoid":
        scores = shares = e.op("Sigmoid", scores)
    elif not normalized:
        shares = e.op("Softmax", scores, axis=-1)
    names = [
        e.name(e.node.inputs[0]), scores, first, first_scale, first_bias, last, last_scale,
        last_bias,
    ]  # fmt: skip
    if attrs["scoring"] == "sigmoid" or not normalized:
        names += [*[""] * 6, shares]
    scale = attrs["routed_scale"]
    emit_kernel(
        e, "QMoE", names,
        {
            "expert_weight_bits": attrs["bits"], "block_size": attrs["block_size"],
            "quant_type": "int", "weights_prepacked": 0,
            "accuracy_level": attrs["accuracy_level"], "normalize_routing_weights": normalized,
            **(gated_fields(e.node) if attrs["gated"] else {}),
        },
        [] if scale == 1 else [e.const(scale, np.dtype(np.float32))],
    )  # fmt: skip


def _gather_blocks(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "GatherBlockQuantized", e.inputs, domain=_MICROSOFT,
        bits=attrs["bits"], block_size=attrs["block_size"], gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def _linear_attention(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "LinearAttention", e.inputs, _all_outputs(e),
        domain="" if e.profile == "onnx" else _MICROSOFT,
        q_num_heads=attrs["heads"], kv_num_heads=attrs["kv_heads"],
        scale=attrs["scale"], update_rule=attrs["rule"],
    )  # fmt: skip


def _causal_conv(e: EmitContext) -> None:
    kind = e.node.attrs["activation"]
    outputs = _all_outputs(e)
    e.emit("CausalConvWithState", e.inputs, outputs, domain=_MICROSOFT, activation=kind)


def _all_outputs(e: EmitContext) -> list[str]:
    """Returns names of all results: the runtime's schema has none that may be left out."""
    return [e.name(value) if value.num_uses else e.temp("unused") for value in e.node.outputs]


EMITS: tuple[Emit, ...] = (
    Emit(ops.native_attention, {_NATIVE_SINCE: emit_native}),
    Emit(ops.flat_attention, {_NATIVE_SINCE: _flat_attention}),
    Emit(ops.multi_head_attention, {13: _multi_head}),
    Emit(ops.group_query_attention, {13: _group_query}),
    Emit(ops.flat_rotary, {13: _flat_rotary}, _rotary_min_opset),
    Emit(quantized.matmul_integer_to_float, {13: _integer_to_float}),
    Emit(quantized.matmul_nbits, {13: _nbits}),
    Emit(experts.moe_nbits, {13: _experts}),
    Emit(recurrences.flat_linear_attention, {13: _linear_attention}),
    Emit(recurrences.channels_causal_conv, {13: _causal_conv}),
    Emit(tables.gather_block_quantized, {13: _gather_blocks}),
    Emit(ops.bias_gelu, {13: _bias_gelu}),
    Emit(ops.skip_layer_norm, {13: lambda e: _skip_norm(e, "SkipLayerNormalization")}),
    Emit(ops.skip_rms_norm, {13: lambda e: _skip_norm(e, "SkipSimplifiedLayerNormalization")}),
)
