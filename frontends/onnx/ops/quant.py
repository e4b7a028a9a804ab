"""Importers of quantization operators; com.microsoft's older forms mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.frontends.onnx.ops.conv import window_attrs
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.graph import Value
from regraft.ir.ops import quant as ops
from regraft.ir.ops import quant_linalg as linalg
from regraft.ir.types import DType

_DEFAULT_AXIS = 1


def _place(item: NodeImport) -> dict[str, Any]:
    """Returns `axis` and `block_size`: no axis where one scale serves the whole tensor."""
    block = int(item.attr("block_size", 0))
    shape = item.require(1).shape
    if not block and shape is not None and (not shape or shape == (1,)):
        return {"axis": None}
    axis = (
        int(item.attr("axis", _DEFAULT_AXIS)) if item.version >= 13 or item.proto.domain else None
    )
    rank = item.rank(0)
    if axis is not None and rank is not None:
        if not -rank <= axis < rank and rank == 1:  # a vector has one axis, whatever the default
            axis = 0
        elif not -rank <= axis < rank:
            raise item.error(f"axis {axis} is out of range for rank {rank}")
        axis %= rank
    return {"axis": axis, "block_size": block}


def _dtype(item: NodeImport, name: str) -> DType | None:
    code = int(item.attr(name, 0))
    return DTYPES[code] if code else None


def _quantize(item: NodeImport) -> Value:
    zero_point = item.input(2)
    given = _dtype(item, "output_dtype")
    dtype = given or (DType.U8 if zero_point is None else zero_point.dtype)
    return item.b.op(
        ops.quantize, *item.inputs[:3], **_place(item), dtype=dtype,
        precision=_dtype(item, "precision"), saturate=bool(item.attr("saturate", 1)),
    )  # fmt: skip


def _dequantize(item: NodeImport) -> Value:
    return item.b.op(
        ops.dequantize, *item.inputs[:3], **_place(item), dtype=_dtype(item, "output_dtype")
    )


def _qlinear_matmul(item: NodeImport) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (item.require(i) for i in range(8))
    return item.b.op(linalg.qlinear_matmul, a, b, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)


def _conv_attrs(item: NodeImport, weight: Value) -> dict[str, Any] | None:
    kernel, sizes = (None if v.shape is None else v.shape[2:] for v in (weight, item.require(0)))
    spatial = kernel if kernel is not None else sizes
    if spatial is None:
        return None
    return window_attrs(item, len(spatial), kernel, sizes) | {"groups": item.attr("group", 1)}


def _conv_integer(item: NodeImport) -> Sequence[Value]:
    attrs = _conv_attrs(item, item.require(1))
    if attrs is None:
        return item.opaque()
    return [item.b.op(linalg.conv_integer, *item.inputs[:4], **attrs)]


def _qlinear_conv(item: NodeImport) -> Sequence[Value]:
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = (
        item.require(i) for i in range(8)
    )
    attrs = _conv_attrs(item, weight)
    if attrs is None:
        return item.opaque()
    operands = (x, weight, item.input(8), x_scale, x_zero, w_scale, w_zero, y_scale, y_zero)
    return [item.b.op(linalg.qlinear_conv, *operands, **attrs)]


IMPORTS: tuple[Import, ...] = (
    Import("QuantizeLinear", {10: _quantize, 13: _quantize}),
    Import("DequantizeLinear", {10: _dequantize, 13: _dequantize}),
    Import("QuantizeLinear", {1: _quantize}, domain="com.microsoft"),
    Import("DequantizeLinear", {1: _dequantize}, domain="com.microsoft"),
    Import("DynamicQuantizeLinear", {11: direct(ops.dynamic_quantize)}),
    Import("MatMulInteger", {10: direct(linalg.matmul_integer)}),
    Import("QLinearMatMul", {10: _qlinear_matmul}),
    Import("ConvInteger", {10: _conv_integer}),
    Import("QLinearConv", {10: _qlinear_conv}),
)
