"""Emitters of RNN, GRU and LSTM."""

from __future__ import annotations

from typing import Any

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter
from regraft.ir.ops import rnn as ops


def _recurrent(op_type: str, defaults: tuple[str, ...], *flags: str) -> Emitter:
    def run(e: EmitContext) -> None:
        attrs = e.node.attrs
        names = attrs["activations"]
        alphas, betas = (
            tuple(
                value
                for name, value in zip(names, attrs[which], strict=True)
                if ops.PARAMETERS.get(name, (None, None))[slot] is not None
            )
            for slot, which in enumerate(("alphas", "betas"))
        )
        own: dict[str, Any] = {flag: 1 for flag in flags if attrs[flag]}
        e.emit(
            op_type, e.inputs,
            hidden_size=attrs["hidden_size"],
            direction=attrs["direction"] if attrs["direction"] != "forward" else None,
            activations=None if names == defaults * ops.num_directions(e.node) else names,
            activation_alpha=alphas or None, activation_beta=betas or None,
            clip=attrs["clip"],
            **own,
        )  # fmt: skip

    return run


EMITS: tuple[Emit, ...] = (
    Emit(ops.rnn, {13: _recurrent("RNN", ("Tanh",))}),
    Emit(ops.gru, {13: _recurrent("GRU", ("Sigmoid", "Tanh"), "linear_before_reset")}),
    Emit(ops.lstm, {13: _recurrent("LSTM", ("Sigmoid", "Tanh", "Tanh"), "input_forget")}),
)
