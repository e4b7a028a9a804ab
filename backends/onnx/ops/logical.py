"""Emitters of truth values, comparisons, selection and bits."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.graph import Node
from regraft.ir.ops import logical as ops
from regraft.ir.types import DType

_UNSIGNED = {
    DType.I8: DType.U8, DType.I16: DType.U16, DType.I32: DType.U32, DType.I64: DType.U64,
}  # fmt: skip


def _bit_shift(e: EmitContext) -> None:
    left = e.node.attrs["left"]
    dtype = e.node.output.dtype
    if dtype not in _UNSIGNED:
        e.emit("BitShift", e.inputs, direction="LEFT" if left else "RIGHT")
        return
    # before opset 28 only unsigned integers shift; casts between equal widths keep the bits, and a
    # negative amount becomes a huge one
    x, y = e.inputs
    unsigned = _UNSIGNED[dtype]
    amount = e.op("Cast", y, to=unsigned)
    if left:
        shifted = e.op("BitShift", e.op("Cast", x, to=unsigned), amount, direction="LEFT")
        inside = e.op("Less", amount, e.const(dtype.bits, unsigned.numpy))
        back = e.op("Cast", shifted, to=dtype)
        e.emit("Where", [inside, back, e.const(0, dtype.numpy)])
        return
    # x >> y fills with the sign: ~(~x >> y) for negative x; the last bit stands for all beyond
    negative = e.op("Less", x, e.const(0, dtype.numpy))
    size = e.op("Where", negative, e.op("BitwiseNot", x), x)
    near = e.op("Min", amount, e.const(dtype.bits - 1, unsigned.numpy))
    shifted = e.op("BitShift", e.op("Cast", size, to=unsigned), near, direction="RIGHT")
    back = e.op("Cast", shifted, to=dtype)
    e.emit("Where", [negative, e.op("BitwiseNot", back), back])


def _bit_shift_opset(node: Node) -> int:
    return 18 if node.output.dtype in _UNSIGNED and not node.attrs["left"] else 13


def _equal_opset(node: Node) -> int:
    a = node.inputs[0]
    return 19 if a is not None and a.dtype is DType.STRING else 13


def _where(e: EmitContext) -> None:
    if e.node.output.dtype is not DType.BOOL:
        e.emit("Where", e.inputs)
        return
    # ONNX Runtime chooses between numbers only
    condition, x, y = e.inputs
    first = e.op("And", condition, x)
    e.emit("Or", [first, e.op("And", e.op("Not", condition), y)])


EMITS: tuple[Emit, ...] = (
    Emit(ops.logical_and, {13: direct("And")}),
    Emit(ops.logical_or, {13: direct("Or")}),
    Emit(ops.logical_xor, {13: direct("Xor")}),
    Emit(ops.logical_not, {13: direct("Not")}),
    Emit(ops.equal, {13: direct("Equal")}, _equal_opset),
    Emit(ops.less, {13: direct("Less")}),
    Emit(ops.less_or_equal, {13: direct("LessOrEqual")}),
    Emit(ops.greater, {13: direct("Greater")}),
    Emit(ops.greater_or_equal, {13: direct("GreaterOrEqual")}),
    Emit(ops.where, {13: _where}),
    Emit(ops.bitwise_and, {18: direct("BitwiseAnd")}),
    Emit(ops.bitwise_or, {18: direct("BitwiseOr")}),
    Emit(ops.bitwise_xor, {18: direct("BitwiseXor")}),
    Emit(ops.bitwise_not, {18: direct("BitwiseNot")}),
    Emit(ops.bit_shift, {13: _bit_shift}, _bit_shift_opset),
)
