"""Emitters of recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.backends.torch.emitter import Emit, EmitContext, Emitted
from regraft.backends.torch.library import recurrent as library
from regraft.ir.ops import rnn as ops
from regraft.ir.opspec import OpSpec

_USUAL: dict[OpSpec, tuple[str, ...]] = {
    ops.lstm: ("Sigmoid", "Tanh", "Tanh"),
    ops.gru: ("Sigmoid", "Tanh"),
}

_LOOPS: dict[OpSpec, Callable[..., Any]] = {
    ops.rnn: library.run_rnn,
    ops.gru: library.run_gru,
    ops.lstm: library.run_lstm,
}


def _is_fused(e: EmitContext) -> bool:
    """Whether PyTorch has a kernel for the layer: usual functions, no variants."""
    attrs, node = e.node.attrs, e.node
    num = ops.num_directions(node)
    if attrs["clip"] is not None or node.operand("lengths") is not None:
        return False
    each = attrs["activations"][: len(attrs["activations"]) // num]
    if attrs["activations"] != each * num:
        return False
    match node.op:
        case ops.lstm:
            return (
                each == _USUAL[node.op]
                and not attrs["input_forget"]
                and node.operand("peepholes") is None
            )
        case ops.gru:
            return each == _USUAL[node.op] and bool(attrs["linear_before_reset"])
        case _:
            return each in (("Tanh",), ("Relu",))


def _emit(e: EmitContext) -> Emitted:
    attrs, op = e.node.attrs, e.node.op
    inputs = e.inputs + ["None"] * (len(op.operands) - len(e.inputs))
    if _is_fused(e):
        x, w, r, bias, _, *states = inputs[:7]
        call = e.helper(library.run_fused)
        kind = op.name if op is not ops.rnn else f"rnn_{attrs['activations'][0].lower()}"
        arguments = [x, w, r, bias, ", ".join([f"({', '.join(states)},)"])]
        return f"{call}({', '.join(arguments)}, {kind!r}, {attrs['direction']!r})"
    settings = [repr(attrs[name]) for name in ("direction", "activations", "alphas", "betas")]
    settings.append(repr(attrs["clip"]))
    if op is ops.gru:
        settings.append(str(attrs["linear_before_reset"]))
    if op is ops.lstm:
        settings.append(str(attrs["input_forget"]))
    function = _LOOPS[op]
    return f"{e.helper(function)}({', '.join(inputs + settings)})"


EMITS = (Emit(ops.rnn, _emit), Emit(ops.gru, _emit), Emit(ops.lstm, _emit))
