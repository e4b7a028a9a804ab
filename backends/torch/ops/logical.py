"""Emitters of truth values, comparisons, selection and bits."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.library.bits import shift_right
from regraft.backends.torch.ops.arithmetic import infix, unary
from regraft.backends.torch.ops.params import narrowed, operand, widened
from regraft.ir.ops import logical as ops
from regraft.ir.types import DType


def _emit_where(e: EmitContext) -> str:
    condition, left, right = e.input(0), e.input(1), e.input(2)
    number = e.number(2)
    if number != right and not _is_number(e, 1):
        right = number
    elif _is_number(e, 1) and not _is_number(e, 2):
        left = e.number(1)
    return f"torch.where({condition}, {left}, {right})"


def _is_number(e: EmitContext, idx: int) -> bool:
    return e.number(idx) != e.input(idx)


def _emit_bit_shift(e: EmitContext) -> str:
    if not e.attr("left") and operand(e, 0).dtype is DType.U64:
        return narrowed(e, f"{e.helper(shift_right)}({widened(e, 0)}, {widened(e, 1)})")
    sign = "<<" if e.attr("left") else ">>"
    return narrowed(e, f"{widened(e, 0)} {sign} {widened(e, 1)}")


EMITS = (
    Emit(ops.logical_and, infix("&")),
    Emit(ops.logical_or, infix("|")),
    Emit(ops.logical_xor, infix("^")),
    Emit(ops.logical_not, unary("~{x}")),
    Emit(ops.equal, infix("==")),
    Emit(ops.less, infix("<")),
    Emit(ops.less_or_equal, infix("<=")),
    Emit(ops.greater, infix(">")),
    Emit(ops.greater_or_equal, infix(">=")),
    Emit(ops.where, _emit_where),
    Emit(ops.bitwise_and, infix("&")),
    Emit(ops.bitwise_or, infix("|")),
    Emit(ops.bitwise_xor, infix("^")),
    Emit(ops.bitwise_not, unary("~{x}")),
    Emit(ops.bit_shift, _emit_bit_shift),
)
