"""The emitter of mixtures of experts as grouped products; the routing stays PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

from regraft.backends.torch.emitter import EmitContext, EmitTable, Emitted
from regraft.backends.torch.ops.moe import experts_text
from regraft.backends.triton.kernel_calls import KernelCalls, fits
from regraft.backends.triton.kernels import experts
from regraft.ir.graph import Node
from regraft.ir.ops.quant import dequantize, lookup


def expert_emit(table: EmitTable, calls: KernelCalls) -> Callable[[EmitContext], Emitted]:
    """Returns the emitter; `table` holds those of PyTorch, `calls` notes what is called."""

    def mix(e: EmitContext) -> Emitted:
        reason = mixture_misfit(e.node)
        if not reason:
            made = [value.producer for value in e.node.inputs[2:5] if value is not None]
            if any(node is not None and node.op in (dequantize, lookup) for node in made):
                calls.note(e, "PyTorch unpacks its codes before each call: no kernel reads these")
            return experts_text(e, calls.name(experts.experts), f'"{e.attr("activation")}"')
        return calls.keep(e, table, reason)

    return mix


def mixture_misfit(node: Node) -> str:
    """Returns why no kernel computes a mixture of experts, or ""."""
    x, _, *matrices = node.inputs[:8]
    if not fits(x, *(value for value in matrices if value is not None)):
        return "x, matrices and biases are not all of one of f32, f16, bf16"
    if node.attrs["limit"] < 0 or node.attrs["gate_limit"] < 0:
        return "its limits are below zero"
    if node.attrs["gate_limit"] and not node.attrs["limit"]:
        return "its gate alone is bounded"
    return ""
