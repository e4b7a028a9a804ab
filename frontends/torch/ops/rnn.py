"""Importers of recurrent layers: stacks of lstm, gru and rnn, one IR operator per layer.

PyTorch orders the gates of an LSTM input, forget, cell, output and those of a GRU reset, update,
new; the IR follows ONNX: input, output, forget, cell and update, reset, hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.frontends.torch.ops.slicing import joined, parts_of
from regraft.ir.dims import exactdiv
from regraft.ir.graph import Value
from regraft.ir.ops import rnn as ops
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.opspec import OpSpec


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of layer.

    Args:
        spec: Its operator.
        order: Which PyTorch gate stands at each place in the IR.
        activations: Functions of one direction.
        num_states: Number of carried states.
        flags: Further attributes.
    """

    spec: OpSpec
    order: tuple[int, ...]
    activations: tuple[str, ...]
    num_states: int = 1
    flags: tuple[tuple[str, Any], ...] = ()


_LSTM = _Kind(ops.lstm, (0, 3, 1, 2), ("Sigmoid", "Tanh", "Tanh"), num_states=2)
_GRU = _Kind(ops.gru, (1, 0, 2), ("Sigmoid", "Tanh"), flags=(("linear_before_reset", True),))
_TANH = _Kind(ops.rnn, (0,), ("Tanh",))
_RELU = _Kind(ops.rnn, (0,), ("Relu",))


def _reordered(c: CallImport, weight: Value, kind: _Kind) -> Value:
    """Returns the gates of a weight or bias in the order of the IR."""
    gates = len(kind.order)
    if gates == 1:
        return weight
    size = exactdiv(shape_of(weight)[0], gates)
    parts = parts_of(c, weight, 0, (size,) * gates)
    return joined(c, [parts[i] for i in kind.order], 0)


def _layer_weights(
    c: CallImport, params: Sequence[Value], kind: _Kind, *, has_biases: bool
) -> list[Value | None]:
    """Returns w, r and bias of one layer, its directions stacked."""
    per_direction = 4 if has_biases else 2
    directions = [params[i : i + per_direction] for i in range(0, len(params), per_direction)]
    stacked: list[Value | None] = []
    for slot in range(2):
        each = [c.b.op(unsqueeze, _reordered(c, d[slot], kind), axes=(0,)) for d in directions]
        stacked.append(joined(c, each, 0))
    if not has_biases:
        return [*stacked, None]
    biases = []
    for d in directions:
        both = joined(c, [_reordered(c, d[slot], kind) for slot in (2, 3)], 0)
        biases.append(c.b.op(unsqueeze, both, axes=(0,)))
    return [*stacked, joined(c, biases, 0)]


def _states(c: CallImport, num_layers: int, directions: int) -> list[Sequence[Value]]:
    """Returns every initial state as one part per layer."""
    given = c.args["hx"]
    states = given if isinstance(given, tuple) else (given,)
    return [parts_of(c, state, 0, (directions,) * num_layers) for state in states]


def _recurrent(kind: _Kind) -> Importer:
    def run(c: CallImport) -> Sequence[Value]:
        if c.attr("train") and c.attr("dropout"):
            raise UnsupportedCallError("dropout in training is random: call `model.eval()` first")
        num_layers, bidirectional = c.attr("num_layers"), bool(c.attr("bidirectional"))
        has_biases, batch_first = bool(c.attr("has_biases")), bool(c.attr("batch_first"))
        directions = 2 if bidirectional else 1
        params = c.values("params")
        per_layer = directions * (4 if has_biases else 2)
        if len(params) != num_layers * per_layer:
            raise UnsupportedCallError("projected states")
        states = _states(c, num_layers, directions)
        x = c.value("input")
        x = moved(c, x, (1, 0, 2)) if batch_first else x
        finals: list[list[Value]] = [[] for _ in range(kind.num_states)]
        for layer in range(num_layers):
            own = params[layer * per_layer : (layer + 1) * per_layer]
            w, r, bias = _layer_weights(c, own, kind, has_biases=has_biases)
            results = _layer(c, kind, x, (w, r, bias), [s[layer] for s in states], bidirectional)
            for found, final in zip(finals, results[1:], strict=True):
                found.append(final)
            # [S, D, B, H] -> [S, B, D * H]
            S, D, B, H = shape_of(results[0])
            x = reshaped(c, moved(c, results[0], (0, 2, 1, 3)), (S, B, D * H))
        x = moved(c, x, (1, 0, 2)) if batch_first else x
        return [x, *(joined(c, found, 0) for found in finals)]

    return run


def _layer(
    c: CallImport,
    kind: _Kind,
    x: Value,
    weights: tuple[Value | None, ...],
    states: Sequence[Value],
    bidirectional: bool,
) -> Sequence[Value]:
    names = kind.activations * (2 if bidirectional else 1)
    zeros = (0.0,) * len(names)
    hidden = shape_of(states[0])[-1]
    return c.b.multi(
        kind.spec, x, *weights, None, *states, hidden_size=hidden,
        direction="bidirectional" if bidirectional else "forward",
        activations=names, alphas=zeros, betas=zeros, **dict(kind.flags),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    row(_recurrent(_LSTM), "aten.lstm.input", "regraft.lstm.default"),
    row(_recurrent(_GRU), "aten.gru.input", "regraft.gru.default"),
    row(_recurrent(_TANH), "aten.rnn_tanh.input", "regraft.rnn_tanh.default"),
    row(_recurrent(_RELU), "aten.rnn_relu.input", "regraft.rnn_relu.default"),
)
