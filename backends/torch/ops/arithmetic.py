"""Emitters of arithmetic and rounding."""

from __future__ import annotations

from collections.abc import Callable

from regraft.backends.torch.emitter import Emit, EmitContext, Emitter
from regraft.backends.torch.ops.params import WIDE_UNSIGNED, narrowed, operand, widened
from regraft.ir.ops import arithmetic as ops
from regraft.ir.ops import rounding
from regraft.ir.types import DType


def _is_wide(e: EmitContext) -> bool:
    return any(v is not None and v.dtype in WIDE_UNSIGNED for v in e.node.inputs)


def infix(sign: str) -> Callable[[EmitContext], str]:
    """Returns an emitter of `a sign b`."""

    def run(e: EmitContext) -> str:
        if _is_wide(e):
            return narrowed(e, f"{widened(e, 0)} {sign} {widened(e, 1)}")
        return f"{e.number(0)} {sign} {e.number(1)}"

    return run


def unary(text: str) -> Emitter:
    """Returns an emitter of an expression of `{x}`."""

    def run(e: EmitContext) -> str:
        return narrowed(e, text.format(x=widened(e, 0)))

    return run


def _whole(e: EmitContext) -> bool:
    dtype = operand(e, 0).dtype
    return dtype is not None and dtype.is_integer


def _emit_div(e: EmitContext) -> str:
    if _is_wide(e):
        quotient = f'torch.div({widened(e, 0)}, {widened(e, 1)}, rounding_mode="trunc")'
        return narrowed(e, quotient)
    if _whole(e):
        return f'torch.div({e.input(0)}, {e.number(1)}, rounding_mode="trunc")'
    return f"{e.number(0)} / {e.number(1)}"


def _emit_mod(e: EmitContext) -> str:
    if e.attr("fmod"):
        if _is_wide(e):
            return narrowed(e, f"torch.fmod({widened(e, 0)}, {widened(e, 1)})")
        return f"torch.fmod({e.input(0)}, {e.number(1)})"
    return infix("%")(e)


def _emit_pow(e: EmitContext) -> str:
    base, exponent = operand(e, 0), operand(e, 1)
    dtype = base.dtype
    if dtype is None or dtype is exponent.dtype:
        return infix("**")(e)
    result = e.dtype(dtype)
    if dtype.is_float:
        number = e.number(1)  # the result has the type of the base
        if number != e.name(exponent):
            return f"{e.input(0)} ** {number}"
        if exponent.dtype is not None and exponent.dtype.is_float:
            return f"{e.input(0)} ** {number}.to({result})"
        return f"{e.input(0)} ** {widened(e, 1)}"
    if exponent.dtype is not None and exponent.dtype.is_float:
        return f"({e.input(0)}.double() ** {e.input(1)}).to({result})"
    return f"({widened(e, 0)} ** {widened(e, 1)}).to({result})"


def _extremum(function: str, bound: str) -> Emitter:
    def run(e: EmitContext) -> str:
        if _is_wide(e):
            return narrowed(e, f"{function}({widened(e, 0)}, {widened(e, 1)})")
        left, right = e.number(0), e.number(1)
        if left != e.input(0):
            return f"{right}.clamp({bound}={left})"
        if right != e.input(1):
            return f"{left}.clamp({bound}={right})"
        return f"{function}({left}, {right})"

    return run


def _floats(text: str) -> Callable[[EmitContext], str]:
    """Returns an emitter that leaves whole numbers as they are."""

    def run(e: EmitContext) -> str:
        return e.input(0) if _whole(e) else text.format(x=e.input(0))

    return run


def _emit_abs(e: EmitContext) -> str:
    dtype = operand(e, 0).dtype
    if dtype in (DType.U8, *WIDE_UNSIGNED):
        return e.input(0)
    return f"{e.input(0)}.abs()"


EMITS = (
    Emit(ops.add, infix("+")),
    Emit(ops.sub, infix("-")),
    Emit(ops.mul, infix("*")),
    Emit(ops.div, _emit_div),
    Emit(ops.mod, _emit_mod),
    Emit(ops.pow_, _emit_pow),
    Emit(ops.min_, _extremum("torch.minimum", "max")),
    Emit(ops.max_, _extremum("torch.maximum", "min")),
    Emit(ops.neg, unary("-{x}")),
    Emit(ops.abs_, _emit_abs),
    Emit(ops.sign, unary("{x}.sign()")),
    Emit(rounding.floor, _floats("{x}.floor()")),
    Emit(rounding.ceil, _floats("{x}.ceil()")),
    Emit(rounding.round_, _floats("{x}.round()")),
)
