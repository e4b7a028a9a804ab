"""Emitters of elementary functions and tests of floats."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.ops.arithmetic import unary
from regraft.ir.ops import functions as ops


def _emit_is_inf(e: EmitContext) -> str:
    x, positive, negative = e.input(0), e.attr("positive"), e.attr("negative")
    if positive and negative:
        return f"torch.isinf({x})"
    if positive or negative:
        return f"torch.is{'pos' if positive else 'neg'}inf({x})"
    return f"torch.zeros_like({x}, dtype=torch.bool)"


_BY_NAME = (
    ops.exp, ops.log, ops.sqrt, ops.reciprocal, ops.erf,
    ops.sin, ops.cos, ops.tan, ops.asin, ops.acos, ops.atan,
    ops.sinh, ops.cosh, ops.tanh, ops.asinh, ops.acosh, ops.atanh,
)  # fmt: skip

EMITS = (
    *(Emit(spec, unary(f"torch.{spec.name}({{x}})")) for spec in _BY_NAME),
    Emit(ops.is_nan, unary("torch.isnan({x})")),
    Emit(ops.is_inf, _emit_is_inf),
)
