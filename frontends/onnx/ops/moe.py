"""Importer of ONNX Runtime's MoE."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.graph import Value
from regraft.ir.ops import moe, reshaping

# its `gelu` is the tanh approximation
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "silu": "silu"}


def _moe(item: NodeImport) -> Value | Sequence[Value]:
    """Plain experts only; gates differ between the runtime's providers and stay as they are."""
    activation = _ACTIVATIONS.get(item.attr("activation_type", "relu"))
    gated = item.input(6) is not None or item.attr("swiglu_fusion", 0)
    if activation is None or gated or item.attr("use_sparse_mixer", 0):
        return item.opaque()
    x, router, up, up_bias, down, down_bias = (item.input(i) for i in range(6))
    if x is None or router is None or x.shape is None or router.shape is None:
        return item.opaque()  # whether the scores need the batch axes depends on the ranks
    if len(router.shape) != len(x.shape):
        router = item.b.op(reshaping.reshape, router, shape=(*x.shape[:-1], router.shape[-1]))
    return item.b.op(
        moe.moe, x, router, up, down, None, up_bias, down_bias,
        top_k=item.attr("k", 1), activation=activation,
        renormalize=bool(item.attr("normalize_routing_weights", 0)),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (Import("MoE", {1: _moe}, "com.microsoft"),)
