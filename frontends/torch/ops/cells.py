"""Importers of one step of a recurrent layer: `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.torch.call import CallImport, Import, Importer, row
from regraft.frontends.torch.ops.shape import shape_of
from regraft.frontends.torch.ops.slicing import parts_of
from regraft.ir.dims import exactdiv
from regraft.ir.graph import Value
from regraft.ir.ops.activation import relu, sigmoid
from regraft.ir.ops.arithmetic import add, mul, sub
from regraft.ir.ops.functions import tanh
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reshaping import transpose
from regraft.ir.opspec import OpSpec


def _projected(c: CallImport, x: Value, weight: str, bias: str) -> Value:
    """Returns `x @ weight.T + bias`."""
    out = c.b.op(matmul, x, c.b.op(transpose, c.value(weight), perm=(1, 0)))
    b = c.optional(bias)
    return out if b is None else c.b.op(add, out, b)


def _gates(c: CallImport, of: Value, count: int) -> Sequence[Value]:
    axis = len(shape_of(of)) - 1
    size = exactdiv(shape_of(of)[axis], count)
    return parts_of(c, of, axis, (size,) * count)


def _lstm_cell(c: CallImport) -> Sequence[Value]:
    hidden, state = c.values("hx")
    total = c.b.op(
        add,
        _projected(c, c.value("input"), "w_ih", "b_ih"),
        _projected(c, hidden, "w_hh", "b_hh"),
    )
    into, forget, cell, out = _gates(c, total, 4)
    kept = c.b.op(mul, c.b.op(sigmoid, forget), state)
    added = c.b.op(mul, c.b.op(sigmoid, into), c.b.op(tanh, cell))
    state = c.b.op(add, kept, added)
    return [c.b.op(mul, c.b.op(sigmoid, out), c.b.op(tanh, state)), state]


def _gru_cell(c: CallImport) -> Value:
    hidden = c.value("hx")
    given = _gates(c, _projected(c, c.value("input"), "w_ih", "b_ih"), 3)
    own = _gates(c, _projected(c, hidden, "w_hh", "b_hh"), 3)
    reset = c.b.op(sigmoid, c.b.op(add, given[0], own[0]))
    update = c.b.op(sigmoid, c.b.op(add, given[1], own[1]))
    new = c.b.op(tanh, c.b.op(add, given[2], c.b.op(mul, reset, own[2])))
    # (1 - update) * new + update * hidden
    return c.b.op(add, new, c.b.op(mul, update, c.b.op(sub, hidden, new)))


def _rnn_cell(activation: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        given = _projected(c, c.value("input"), "w_ih", "b_ih")
        own = _projected(c, c.value("hx"), "w_hh", "b_hh")
        return c.b.op(activation, c.b.op(add, given, own))

    return run


IMPORTS: tuple[Import, ...] = (
    row(_lstm_cell, "aten.lstm_cell.default"),
    row(_gru_cell, "aten.gru_cell.default"),
    row(_rnn_cell(tanh), "aten.rnn_tanh_cell.default"),
    row(_rnn_cell(relu), "aten.rnn_relu_cell.default"),
)
