"""Emitters of arithmetic, rounding and elementary functions."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.ops import arithmetic, functions, rounding
from regraft.ir.opspec import OpSpec


def _mod(e: EmitContext) -> None:
    dtype = e.node.output.dtype
    fmod = e.node.attrs["fmod"]
    if fmod or dtype is None or not dtype.is_float:
        e.emit("Mod", e.inputs, fmod=int(fmod))
        return
    # before opset 28 floats have C's remainder only: move it to the side of the divisor's sign
    a, b = e.inputs
    zero = e.const(0, dtype.numpy)
    rest = e.op("Mod", a, b, fmod=1)
    apart = e.op("Xor", e.op("Less", rest, zero), e.op("Less", b, zero))
    nonzero = e.op("Not", e.op("Equal", rest, zero))
    e.emit("Where", [e.op("And", apart, nonzero), e.op("Add", rest, b), rest])


def _is_inf(e: EmitContext) -> None:
    e.emit(
        "IsInf", e.inputs,
        detect_positive=int(e.node.attrs["positive"]),
        detect_negative=int(e.node.attrs["negative"]),
    )  # fmt: skip


_PLAIN: tuple[tuple[OpSpec, str], ...] = (
    (arithmetic.add, "Add"),
    (arithmetic.sub, "Sub"),
    (arithmetic.mul, "Mul"),
    (arithmetic.div, "Div"),
    (arithmetic.pow_, "Pow"),
    (arithmetic.min_, "Min"),
    (arithmetic.max_, "Max"),
    (arithmetic.neg, "Neg"),
    (arithmetic.abs_, "Abs"),
    (arithmetic.sign, "Sign"),
    (rounding.floor, "Floor"),
    (rounding.ceil, "Ceil"),
    (rounding.round_, "Round"),
    (functions.exp, "Exp"),
    (functions.log, "Log"),
    (functions.sqrt, "Sqrt"),
    (functions.reciprocal, "Reciprocal"),
    (functions.erf, "Erf"),
    (functions.sin, "Sin"),
    (functions.cos, "Cos"),
    (functions.tan, "Tan"),
    (functions.asin, "Asin"),
    (functions.acos, "Acos"),
    (functions.atan, "Atan"),
    (functions.sinh, "Sinh"),
    (functions.cosh, "Cosh"),
    (functions.tanh, "Tanh"),
    (functions.asinh, "Asinh"),
    (functions.acosh, "Acosh"),
    (functions.atanh, "Atanh"),
    (functions.is_nan, "IsNaN"),
)

EMITS: tuple[Emit, ...] = (
    *(Emit(spec, {13: direct(op_type)}) for spec, op_type in _PLAIN),
    Emit(arithmetic.mod, {13: _mod}),
    Emit(functions.is_inf, {13: _is_inf}),
)
