"""Emitters of matrix products, Einsum and Det."""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.ops import einsum, linalg


def _gemm(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "Gemm",
        e.inputs,
        alpha=attrs["alpha"],
        beta=attrs["beta"],
        transA=attrs["trans_a"],
        transB=attrs["trans_b"],
    )


EMITS: tuple[Emit, ...] = (
    Emit(linalg.matmul, {13: direct("MatMul")}),
    Emit(linalg.gemm, {13: _gemm}),
    Emit(linalg.det, {13: direct("Det")}),
    Emit(einsum.einsum, {13: direct("Einsum", "equation")}),
)
