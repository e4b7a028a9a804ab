"""Emitters of quantization operators."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.backends.onnx.ops.conv import window_attrs
from regraft.ir.graph import Node
from regraft.ir.ops import quant as ops
from regraft.ir.ops import quant_linalg as linalg
from regraft.ir.types import DType

# First opset at which QuantizeLinear and DequantizeLinear know a type
_SINCE: dict[DType, int] = {
    DType.F16: 19,
    DType.BF16: 19,
    DType.F8E4M3FN: 19,
    DType.F8E4M3FNUZ: 19,
    DType.F8E5M2: 19,
    DType.F8E5M2FNUZ: 19,
    DType.I16: 21,
    DType.U16: 21,
    DType.I4: 21,
    DType.U4: 21,
    DType.F4E2M1: 23,
    DType.F8E8M0: 24,
    DType.I2: 25,
    DType.U2: 25,
}


def _min_opset(node: Node) -> int:
    """Returns the least opset whose operator knows the types, blocks and attributes of a node."""
    types = [value.dtype for value in (*node.inputs[:3], node.output) if value is not None]
    least = max(_SINCE.get(dtype, 13) for dtype in types if dtype is not None)
    attrs = node.attrs
    if attrs["block_size"] or _states_dtype(node):
        least = max(least, 21)
    if node.op is ops.quantize:
        x, scale = node.inputs[:2]
        mixed = x is not None and scale is not None and x.dtype is not scale.dtype
        if attrs["precision"] is not None or (mixed and x is not None and x.dtype is not DType.I32):
            least = max(least, 23)
    elif attrs["dtype"] is not None:
        least = max(least, 23)
    return least


def _states_dtype(node: Node) -> bool:
    """Returns whether `output_dtype` is needed: no zero point carries the element type."""
    return (
        node.op is ops.quantize
        and node.inputs[2] is None
        and node.attrs["dtype"] not in (None, DType.U8)
    )


def _quantize(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "QuantizeLinear", e.inputs,
        axis=attrs["axis"], block_size=attrs["block_size"] or None,
        output_dtype=attrs["dtype"] if _states_dtype(e.node) else None,
        precision=attrs["precision"], saturate=None if attrs["saturate"] else 0,
    )  # fmt: skip


def _dequantize(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "DequantizeLinear", e.inputs,
        axis=attrs["axis"], block_size=attrs["block_size"] or None, output_dtype=attrs["dtype"],
    )  # fmt: skip


def _qlinear_matmul(e: EmitContext) -> None:
    a, b, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = e.inputs
    e.emit("QLinearMatMul", [a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero])


def _qlinear_matmul_min(node: Node) -> int:
    scale = node.inputs[2]
    return 13 if scale is None or scale.dtype is DType.F32 else 21


def _conv_integer(e: EmitContext) -> None:
    e.emit("ConvInteger", e.inputs, group=e.node.attrs["groups"], **window_attrs(e))


def _qlinear_conv(e: EmitContext) -> None:
    x, weight, bias, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = e.inputs
    inputs = [x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero]
    inputs += [bias] if bias else []
    e.emit("QLinearConv", inputs, group=e.node.attrs["groups"], **window_attrs(e))


EMITS: tuple[Emit, ...] = (
    Emit(ops.quantize, {13: _quantize}, min_opset=_min_opset),
    Emit(ops.dequantize, {13: _dequantize}, min_opset=_min_opset),
    Emit(ops.dynamic_quantize, {13: direct("DynamicQuantizeLinear")}),
    Emit(linalg.matmul_integer, {13: direct("MatMulInteger")}),
    Emit(linalg.qlinear_matmul, {13: _qlinear_matmul}, min_opset=_qlinear_matmul_min),
    Emit(linalg.conv_integer, {13: _conv_integer}),
    Emit(linalg.qlinear_conv, {13: _qlinear_conv}),
)
