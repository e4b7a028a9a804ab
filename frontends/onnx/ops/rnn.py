"""Importers of RNN, GRU and LSTM: time-first layout, every activation and parameter spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.onnx.importer import Import, Importer, NodeImport
from regraft.ir.graph import Value
from regraft.ir.ops import rnn as ops
from regraft.ir.ops.reshaping import transpose
from regraft.ir.opspec import OpSpec

_DEFAULTS: dict[OpSpec, tuple[str, ...]] = {
    ops.rnn: ("Tanh",),
    ops.gru: ("Sigmoid", "Tanh"),
    ops.lstm: ("Sigmoid", "Tanh", "Tanh"),
}
_NAMES = {name.lower(): name for name in ops.ACTIVATIONS}  # ONNX Runtime ignores the case
_STATE_SLOTS = (5, 6)  # initial_h, initial_c


def _recurrent(spec: OpSpec, *flags: str) -> Importer:
    """Returns the importer of a recurrent layer; `flags` are its own boolean attributes."""

    def run(item: NodeImport) -> Sequence[Value]:
        batch_first = bool(item.attr("layout", 0))
        inputs = list(item.inputs)
        if batch_first:
            for idx in (0, *_STATE_SLOTS):
                value = item.input(idx)
                if value is not None:
                    inputs[idx] = item.b.op(transpose, value, perm=(1, 0, 2))
        direction = str(item.attr("direction", "forward")).lower()
        names, alphas, betas = _activations(item, _DEFAULTS[spec], direction)
        own: dict[str, Any] = {flag: bool(item.attr(flag, 0)) for flag in flags}
        results = item.b.node(
            spec, *inputs,
            hidden_size=_hidden_size(item), direction=direction,
            activations=names, alphas=alphas, betas=betas, clip=item.attr("clip"),
            **own,
        ).outputs  # fmt: skip
        if not batch_first:
            return results
        y, *states = results
        return [
            item.b.op(transpose, y, perm=(2, 0, 1, 3)),
            *(item.b.op(transpose, state, perm=(1, 0, 2)) for state in states),
        ]

    return run


def _hidden_size(item: NodeImport) -> int:
    size = item.attr("hidden_size")
    if size is not None:
        return int(size)
    shape = item.require(2).shape
    if shape is None or not isinstance(shape[-1], int):
        raise item.error(
            "the number of hidden units is unknown",
            hint="give the attribute `hidden_size` or a recurrence weight of known shape",
        )
    return shape[-1]


def _activations(
    item: NodeImport, defaults: tuple[str, ...], direction: str
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Returns names, alphas and betas, one each per activation of each direction."""
    count = len(defaults) * (2 if direction == "bidirectional" else 1)
    given = item.attr("activations") or defaults * (count // len(defaults))
    if len(given) != count:
        raise item.error(f"has {len(given)} activations, expected {count}")
    for name in given:
        if str(name).lower() not in _NAMES:
            raise item.error(
                f"unknown activation `{name}`",
                hint=f"known ones: {', '.join(sorted(ops.ACTIVATIONS))}",
            )
    names = tuple(_NAMES[str(name).lower()] for name in given)
    pending = [list(item.attr(f"activation_{which}", ())) for which in ("alpha", "beta")]
    # a given value goes to the next function that takes one
    params = [
        tuple(
            0.0 if default is None else float(values.pop(0)) if values else default
            for default in (ops.PARAMETERS.get(name, (None, None))[slot] for name in names)
        )
        for slot, values in enumerate(pending)
    ]
    return names, params[0], params[1]


IMPORTS: tuple[Import, ...] = (
    Import("RNN", {7: _recurrent(ops.rnn)}),
    Import("GRU", {7: _recurrent(ops.gru, "linear_before_reset")}),
    Import("LSTM", {7: _recurrent(ops.lstm, "input_forget")}),
)
