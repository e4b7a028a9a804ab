"""Importers of matrix products, their fused forms in `com.microsoft`, Einsum and Det."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.ir.graph import Value
from regraft.ir.ops import activation, arithmetic, einsum, functions, linalg, reshaping

_MICROSOFT = "com.microsoft"


def _gemm(item: NodeImport) -> Value:
    return item.b.op(
        linalg.gemm,
        *item.inputs,
        alpha=item.attr("alpha", 1.0),
        beta=item.attr("beta", 1.0),
        trans_a=bool(item.attr("transA", 0)),
        trans_b=bool(item.attr("transB", 0)),
    )


def _fused_gemm(item: NodeImport) -> Value:
    name = item.attr("activation", "")
    alpha, beta = item.attr("activation_alpha"), item.attr("activation_beta")
    out = _gemm(item)
    match name:
        case "" | "Identity":
            return out
        case "Relu":
            return item.b.op(activation.relu, out)
        case "Sigmoid":
            return item.b.op(activation.sigmoid, out)
        case "Tanh":
            return item.b.op(functions.tanh, out)
        case "LeakyRelu":
            return item.b.op(activation.leaky_relu, out, alpha=0.01 if alpha is None else alpha)
        case "HardSigmoid":
            return item.b.op(
                activation.hard_sigmoid, out,
                alpha=0.2 if alpha is None else alpha, beta=0.5 if beta is None else beta,
            )  # fmt: skip
        case _:
            raise item.error(
                f"activation `{name}` is not known",
                hint="Relu, LeakyRelu, Sigmoid, Tanh and HardSigmoid are",
            )


def _transposed(item: NodeImport, value: Value, *, batch: bool, matrix: bool) -> Value:
    """Returns an operand of FusedMatMul in plain matmul order.

    Args:
        item: The node.
        value: The operand, of known rank.
        batch: The rows stand first, before the batch axes.
        matrix: The last two axes are exchanged (after the rows are back in place).
    """
    rank = value.rank or 0
    perm = list(range(rank))
    if rank < 2:
        return value
    if batch:
        perm = [*perm[1:-1], perm[0], perm[-1]]
    if matrix:
        perm[-2:] = perm[:-3:-1]
    return (
        value if perm == sorted(perm) else item.b.op(reshaping.transpose, value, perm=tuple(perm))
    )


def _fused_matmul(item: NodeImport) -> Value | Sequence[Value]:
    a, b = item.require(0), item.require(1)
    alpha = item.attr("alpha", 1.0)
    if a.rank is None or b.rank is None or a.dtype is None:
        return item.opaque()  # which axes are exchanged depends on the rank
    left = _transposed(
        item, a, batch=bool(item.attr("transBatchA", 0)), matrix=bool(item.attr("transA", 0))
    )
    right = _transposed(
        item, b, batch=bool(item.attr("transBatchB", 0)), matrix=bool(item.attr("transB", 0))
    )
    out = item.b.op(linalg.matmul, left, right)
    if alpha == 1:
        return out
    return item.b.op(arithmetic.mul, out, item.b.constant(alpha, a.dtype))


IMPORTS: tuple[Import, ...] = (
    Import("MatMul", {1: direct(linalg.matmul)}),
    Import("Gemm", {1: _gemm}),  # 7 replaced the `broadcast` flag by always broadcasting
    Import("Einsum", {12: direct(einsum.einsum, "equation")}),
    Import("Det", {11: direct(linalg.det)}),
    Import("FusedMatMul", {1: _fused_matmul}, _MICROSOFT),
    Import("TransposeMatMul", {1: _fused_matmul}, _MICROSOFT),
    Import("FusedGemm", {1: _fused_gemm}, _MICROSOFT),
)
