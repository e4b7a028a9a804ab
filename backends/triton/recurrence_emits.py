"""The emitter of linear attention as a call of a kernel.

One makes the features itself; another knows delta rules and factors per channel.
"""

from __future__ import annotations

from collections.abc import Callable

from regraft.backends.torch.emitter import EmitContext, EmitTable, Emitted
from regraft.backends.torch.library import recurrence
from regraft.backends.torch.ops.params import call_text, float_text
from regraft.backends.triton.kernel_calls import KernelCalls, fits
from regraft.backends.triton.kernels import delta_attention, linear_attending
from regraft.backends.triton.kernels.linear_features import LINEAR_FEATURES
from regraft.ir.graph import Node
from regraft.ir.types import DType

MAX_STATE = 256
"""Rows and columns of the state of a head that fit into registers."""


def recurrence_emit(table: EmitTable, calls: KernelCalls) -> Callable[[EmitContext], Emitted]:
    """Returns the emitter; `table` holds those of PyTorch, `calls` notes what is called."""

    def recur(e: EmitContext) -> Emitted:
        reason = recurrence_misfit(e.node)
        if reason:
            return calls.keep(e, table, reason)
        if is_delta(e.node):
            return f"{calls.name(delta_attention.gated_delta_attention)}({_delta_operands(e)})"
        return f"{calls.name(linear_attending.linear_attention)}({_operands(e)})"

    return recur


def is_delta(node: Node) -> bool:
    """Whether a linear attention has a delta rule, or factors per channel."""
    decay = node.operand("decay")
    per_channel = decay is not None and decay.shape is not None and decay.shape[3] != 1
    return "delta" in node.attrs["rule"] or per_channel


def recurrence_misfit(node: Node) -> str:
    """Returns why no kernel computes a linear attention, or ""."""
    attrs, state = node.attrs, node.operand("state")
    final = node.outputs[1]
    sizes = [] if final.shape is None else [x for x in final.shape[2:] if isinstance(x, int)]
    if not attrs["causal"]:
        return "it is not causal: two products, which the vendor's library runs"
    if not fits(*node.inputs[:3]) or any(x is None or x.rank != 4 for x in node.inputs[:3]):
        return "its operands are not three tensors [B, H, T, D] of one of f32, f16, bf16"
    if len(sizes) != 2:
        return "the size of its state is known at run time only"
    if sizes[0] > MAX_STATE or sizes[1] - (attrs["normalizer"] == "sum") > MAX_STATE:
        return f"its state of {sizes[0]} x {sizes[1]} does not fit into registers"
    for name, about in (("decay", "factors"), ("beta", "rates")):
        value = node.operand(name)
        if value is not None and (not fits(value) or value.shape is None):
            return f"its {about} are not f32, f16 or bf16"
    if (state is not None and not fits(state)) or (final.dtype is not DType.F32 and final.num_uses):
        return "its states are not f32"
    return ""


def _delta_operands(e: EmitContext) -> str:
    """Returns the operands of `kernels.gated_delta_attention`; defaults are left out."""
    node, attrs = e.node, e.node.attrs
    decay, beta, state = (node.operand(name) for name in ("decay", "beta", "state"))
    pair = [e.input(0), e.input(1)]
    if attrs["feature_map"] != "none":
        feature = e.helper(recurrence.feature)
        pair = [f'{feature}({text}, "{attrs["feature_map"]}")' for text in pair]
    return call_text(
        "",
        *pair,
        e.input(2),
        decay=None if decay is None else e.name(decay),
        beta=None if beta is None else f"{e.name(beta)}.squeeze(3)",
        state=None if state is None else e.name(state),
        scale=None if attrs["scale"] == 1 else float_text(attrs["scale"]),
        normalize="True" if attrs["normalizer"] == "sum" else None,
        epsilon=float_text(attrs["epsilon"]) if attrs["epsilon"] else None,
    )[1:-1]


def _operands(e: EmitContext) -> str:
    """Returns the operands of `kernels.linear_attention`; defaults are left out."""
    node, attrs = e.node, e.node.attrs
    decay, state, name = node.operand("decay"), node.operand("state"), attrs["feature_map"]
    pair = [e.input(0), e.input(1)]
    if name not in LINEAR_FEATURES:
        feature = e.helper(recurrence.feature)
        pair = [f'{feature}({text}, "{name}")' for text in pair]
    is_mapped = name in LINEAR_FEATURES and name != "none"
    return call_text(
        "",
        *pair,
        e.input(2),
        *([] if decay is None else [f"{e.name(decay)}.squeeze(3)"]),
        state=None if state is None else e.name(state),
        scale=None if attrs["scale"] == 1 else float_text(attrs["scale"]),
        feature_map=f'"{name}"' if is_mapped else None,
        normalize="True" if attrs["normalizer"] == "sum" else None,
        epsilon=float_text(attrs["epsilon"]) if attrs["epsilon"] else None,
    )[1:-1]
