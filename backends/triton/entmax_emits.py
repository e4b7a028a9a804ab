"""Attention with alpha-entmax weights as calls of its kernel."""

from __future__ import annotations

from regraft.backends.torch.emitter import EmitContext
from regraft.backends.torch.ops.params import call_text, float_text
from regraft.backends.triton.chain_forms import FLOATS
from regraft.ir.graph import Node
from regraft.ir.ops.attention_weights import NORMALIZERS
from regraft.ir.types import DType


def is_sparse_attention(node: Node) -> bool:
    """Whether the kernel computes an attention: alphas above 1, scores as they are."""
    attrs, mask, alpha = node.attrs, node.operand("mask"), node.operand("alpha")
    if attrs["normalizer"] != "entmax" or (alpha is None and _alpha_of(node) <= 1):
        return False
    further = ("sinks", "gates", "causal_offset")
    operands = node.inputs[:3]
    return (
        all(node.operand(name) is None for name in further)
        and isinstance(attrs["causal_offset"], int | None)
        and attrs["modifier"] == "none"
        and attrs["softcap"] == 0
        and attrs["softmax_dtype"] is not DType.F64
        and all(value is not None and value.rank == 4 for value in operands)
        and {value.dtype for value in operands if value is not None} < {*FLOATS, None}
        and len({value.dtype for value in operands if value is not None}) == 1
        and (mask is None or mask.rank is not None)
        and (alpha is None or alpha.dtype in FLOATS)
    )


def _alpha_of(node: Node) -> float:
    parameters = NORMALIZERS["entmax"].read(node.attrs["normalizer_parameters"])
    return float(parameters["alpha"])


def entmax_operands(e: EmitContext) -> str:
    """Returns the operands of `kernels.entmax_attention`; defaults are left out."""
    attrs, mask = e.node.attrs, e.node.operand("mask")
    lengths, offset = e.node.operand("kv_lengths"), attrs["causal_offset"]
    alpha = e.node.operand("alpha")
    return call_text(
        "",
        *[e.input(idx) for idx in range(3)],
        *([] if mask is None else [e.name(mask)]),
        alpha=float_text(_alpha_of(e.node)) if alpha is None else e.name(alpha),
        scale=float_text(attrs["scale"]),
        offset=str(offset) if offset else None,
        window=None if offset is None else str(tuple(attrs["window"])),
        lengths=None if lengths is None else e.name(lengths),
    )[1:-1]
