"""Emitter of mixture of experts.

ONNX Runtime has a kernel for plain experts that runs the chosen ones only. Anything else is
written in standard operators, where every expert computes every token.
"""

from __future__ import annotations

from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.ir.graph import Node
from regraft.ir.ops import moe

# its `gelu` is the tanh approximation
_ACTIVATIONS = {"relu": "relu", "gelu_tanh": "gelu", "silu": "silu"}


def _has_kernel(node: Node) -> bool:
    attrs, x = node.attrs, node.inputs[0]
    return (
        attrs["activation"] in _ACTIVATIONS
        and attrs["scoring"] in ("softmax", "topk_softmax")
        and attrs["routed_scale"] == 1
        and attrs["select"] == "top_k"
        and not attrs["capacity"]
        and not attrs["weigh_input"]
        and all(node.inputs[idx] is None for idx in (4, 8, 9))
        and x is not None
        and x.rank in (2, 3)
        and x.shape == node.output.shape
    )


def _is_inlined(node: Node, opset: int, profile: str) -> bool:
    return profile != "ort-cpu" or not _has_kernel(node)


def _moe(e: EmitContext) -> None:
    node = e.node
    if _is_inlined(node, e.opset, e.profile):
        e.inline()
        return
    router, attrs = node.inputs[1], node.attrs
    scores = e.name(router)
    if router is not None and router.shape is not None and len(router.shape) == 3:
        scores = e.op("Reshape", scores, e.ints([-1, router.shape[2]]))
    x, _, up, down, _, up_bias, down_bias = (e.name(value) for value in node.inputs[:7])
    names = [x, scores, up, up_bias, down, down_bias]
    while not names[-1]:
        names.pop()
    # the softmax over the chosen is the renormalized softmax over all
    normalized = attrs["renormalize"] or attrs["scoring"] == "topk_softmax"
    e.emit(
        "MoE", names, domain="com.microsoft", k=attrs["top_k"],
        activation_type=_ACTIVATIONS[attrs["activation"]], normalize_routing_weights=normalized,
    )  # fmt: skip


EMITS: tuple[Emit, ...] = (Emit(moe.moe, {13: _moe}, inlined=_is_inlined),)
