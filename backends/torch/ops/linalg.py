"""Emitters of linear algebra."""

from __future__ import annotations

from regraft.backends.torch.emitter import Emit, EmitContext
from regraft.backends.torch.ops.params import WIDE_UNSIGNED, narrowed, operand, widened
from regraft.ir.ops import einsum
from regraft.ir.ops import linalg as ops


def _factor(value: float, whole: bool) -> str:
    return repr(int(value)) if whole else repr(value)


def _emit_gemm(e: EmitContext) -> str:
    alpha, beta, bias = e.attr("alpha"), e.attr("beta"), e.node.inputs[2]
    a, b = widened(e, 0), widened(e, 1)
    dtype = operand(e, 0).dtype
    is_float = dtype is not None and dtype.is_float
    left = f"{a}.t()" if e.attr("trans_a") else a
    is_plain = alpha == 1 and (bias is None or beta == 1) and is_float
    if is_plain and e.attr("trans_b") and (bias is None or bias.rank == 1):
        return f"F.linear({left}, {b}{'' if bias is None else f', {e.input(2)}'})"
    right = f"{b}.t()" if e.attr("trans_b") else b
    if bias is None or beta == 0:
        product = f"{left} @ {right}"
        return product if alpha == 1 else f"{_factor(alpha, not is_float)} * ({product})"
    if dtype in WIDE_UNSIGNED:
        return narrowed(e, f"{int(alpha)} * ({left} @ {right}) + {int(beta)} * {widened(e, 2)}")
    factors = "".join(
        f", {name}={_factor(value, not is_float)}"
        for name, value in (("beta", beta), ("alpha", alpha))
        if value != 1
    )
    return f"torch.addmm({e.input(2)}, {left}, {right}{factors})"


def _emit_einsum(e: EmitContext) -> str:
    equation = einsum.parse_equation(e.attr("equation"))
    left = ",".join("".join(term) for term in equation.terms)
    return f'torch.einsum("{left}->{"".join(equation.result)}", {", ".join(e.inputs)})'


EMITS = (
    Emit(
        ops.matmul,
        lambda e: narrowed(e, f"{widened(e, 0)} @ {widened(e, 1)}"),
    ),
    Emit(ops.gemm, _emit_gemm),
    Emit(ops.det, lambda e: f"torch.linalg.det({e.input(0)})"),
    Emit(einsum.einsum, _emit_einsum),
)
