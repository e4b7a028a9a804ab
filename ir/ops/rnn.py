"""Recurrent layers: rnn, gru, lstm over f32[S, B, I] sequences (time first).

Shapes: x[S, B, I]; w[D, G*H, I], r[D, G*H, H], bias[D, 2*G*H] with G gates in D directions;
lengths[B]; initial states [D, B, H]; results y[S, D, B, H] and last states [D, B, H].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType

Array = np.ndarray[Any, Any]
Activation = Callable[[Array], Array]
States = tuple[Array, ...]

# Functions that take parameters, with the defaults that ONNX Runtime uses (ONNX names none for
# Affine and ScaledTanh, and 1.0 for ThresholdedRelu): (alpha, beta), None when not taken.
PARAMETERS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (0.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (0.0, None),
    "ScaledTanh": (0.0, 0.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}

_FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "Relu": lambda x, _a, _b: np.maximum(x, 0),
    "Tanh": lambda x, _a, _b: np.tanh(x),
    "Sigmoid": lambda x, _a, _b: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, _b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, _b: np.where(x >= a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, _b: np.where(x < 0, a * np.expm1(x), x),
    "Softsign": lambda x, _a, _b: x / (1 + np.abs(x)),
    "Softplus": lambda x, _a, _b: np.logaddexp(x, x.dtype.type(0)),
}
ACTIVATIONS = frozenset(_FUNCTIONS)


def _infer(node: Node) -> tuple[TensorType, ...]:
    x = node.inputs[0]
    if x is None:
        raise node.error("operand `x` is missing")
    if x.shape is None:
        return tuple(TensorType(x.dtype, None) for _ in node.outputs)
    if len(x.shape) != 3:
        raise node.error(f"x has rank {len(x.shape)}, expected 3 (time, batch, features)")
    S, B, _ = x.shape
    H: DimLike = node.attrs["hidden_size"]
    D = num_directions(node)
    state = TensorType(x.dtype, (D, B, H))
    return (TensorType(x.dtype, (S, D, B, H)), *(state for _ in node.outputs[1:]))


def num_directions(node: Node) -> int:
    """Returns 2 for a bidirectional layer, else 1."""
    return 2 if node.attrs["direction"] == "bidirectional" else 1


def _flops(node: Node) -> DimLike | None:
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None or x.shape is None or w.shape is None:
        return None
    S, B, I = x.shape  # noqa: E741 (the size's name in the literature)
    D, gates, _ = w.shape
    H: DimLike = node.attrs["hidden_size"]
    return S * B * D * gates * (I + H) * 2


def _directions(c: EvalContext) -> Iterator[tuple[int, bool, list[Activation]]]:
    """Yields (index, backward, activations) per direction."""
    attrs = c.attrs
    names: Sequence[str] = attrs["activations"]
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    directions = backward[attrs["direction"]]
    each = len(names) // len(directions)
    clip = attrs["clip"]
    functions = [
        # ONNX Runtime clips what the gates take, not the cell state that the third function takes
        _activation(*args, None if i % each == 2 else clip)
        for i, args in enumerate(zip(names, attrs["alphas"], attrs["betas"], strict=True))
    ]
    for d, back in enumerate(directions):
        yield d, back, functions[d * each : (d + 1) * each]


def _activation(name: str, alpha: float, beta: float, clip: float | None) -> Activation:
    function = _FUNCTIONS[name]
    if clip is None:
        return lambda x: function(x, alpha, beta)
    return lambda x: function(np.clip(x, -clip, clip), alpha, beta)


def _unroll(
    x: Array, lengths: Array | None, backward: bool, states: States, step: Callable[..., States]
) -> tuple[Array, States]:
    """Runs `step(x_t, *states)` over time; beyond a row's length y is 0 and states stay."""
    S, B = x.shape[:2]
    rows = np.arange(B)
    ends = np.full(B, S) if lengths is None else lengths.astype(np.int64)
    y = np.zeros((S, B, states[0].shape[-1]), x.dtype)
    for t in range(S):
        active = t < ends
        if not active.any():
            break
        at = np.where(active, ends - 1 - t if backward else t, 0)
        after = step(x[at, rows], *states)
        keep = active[:, None]
        states = tuple(np.where(keep, new, old) for new, old in zip(after, states, strict=True))
        y[at[active], rows[active]] = after[0][active]
    # ONNX Runtime gives zeros, not the initial state, for a row without any step
    some = (ends > 0)[:, None]
    return y, tuple(np.where(some, state, 0) for state in states)


def _biases(bias: Array | None, d: int, gates: int, H: int, dtype: Any) -> tuple[Array, Array]:
    if bias is None:
        zero = np.zeros(gates * H, dtype)
        return zero, zero
    return bias[d, : gates * H], bias[d, gates * H :]


def _initial(state: Array | None, d: int, x: Array, H: int) -> Array:
    return np.zeros((x.shape[1], H), x.dtype) if state is None else state[d]


def _collect(parts: list[tuple[Array, States]]) -> tuple[Array, ...]:
    y = np.stack([part[0] for part in parts], axis=1)
    finals = zip(*(part[1] for part in parts), strict=True)
    return (y, *(np.stack(final) for final in finals))


def _eval_rnn(
    c: EvalContext,
    x: Array, w: Array, r: Array, bias: Array | None, lengths: Array | None, h0: Array | None,
) -> tuple[Array, ...]:  # fmt: skip
    H = r.shape[-1]
    parts = []
    for d, back, (f,) in _directions(c):
        wb, rb = _biases(bias, d, 1, H, x.dtype)
        xw = x @ w[d].T + (wb + rb)

        def step(xt: Array, h: Array, r: Array = r[d], f: Activation = f) -> States:
            return (f(xt + h @ r.T),)

        parts.append(_unroll(xw, lengths, back, (_initial(h0, d, x, H),), step))
    return _collect(parts)


def _eval_gru(
    c: EvalContext,
    x: Array, w: Array, r: Array, bias: Array | None, lengths: Array | None, h0: Array | None,
) -> tuple[Array, ...]:  # fmt: skip
    H = r.shape[-1]
    linear_before_reset = c.attrs["linear_before_reset"]
    parts = []
    for d, back, (f, g) in _directions(c):
        wb, rb = _biases(bias, d, 3, H, x.dtype)
        zr, hidden = rb.copy(), rb[2 * H :]
        zr[2 * H :] = 0  # the reset gate may act on the recurrent part with its bias

        def step(
            xt: Array, h: Array,
            r: Array = r[d], hidden: Array = hidden, f: Activation = f, g: Activation = g,
        ) -> States:  # fmt: skip
            gates = f(xt[:, : 2 * H] + h @ r[: 2 * H].T)
            update, reset = gates[:, :H], gates[:, H:]
            if linear_before_reset:
                recurrent = reset * (h @ r[2 * H :].T + hidden)
            else:
                recurrent = (reset * h) @ r[2 * H :].T + hidden
            candidate = g(xt[:, 2 * H :] + recurrent)
            return ((1 - update) * candidate + update * h,)

        xw = x @ w[d].T + (wb + zr)
        parts.append(_unroll(xw, lengths, back, (_initial(h0, d, x, H),), step))
    return _collect(parts)


def _eval_lstm(
    c: EvalContext,
    x: Array, w: Array, r: Array, bias: Array | None, lengths: Array | None,
    h0: Array | None, c0: Array | None, peepholes: Array | None,
) -> tuple[Array, ...]:  # fmt: skip
    H = r.shape[-1]
    coupled = c.attrs["input_forget"]
    parts = []
    for d, back, (f, g, act) in _directions(c):
        wb, rb = _biases(bias, d, 4, H, x.dtype)
        p = np.zeros(3 * H, x.dtype) if peepholes is None else peepholes[d]

        def step(
            xt: Array, h: Array, cell: Array,
            r: Array = r[d], p: Array = p,
            f: Activation = f, g: Activation = g, act: Activation = act,
        ) -> States:  # fmt: skip
            gates = xt + h @ r.T  # input, output, forget, cell
            i = f(gates[:, :H] + p[:H] * cell)
            forget = 1 - i if coupled else f(gates[:, 2 * H : 3 * H] + p[2 * H :] * cell)
            cell = forget * cell + i * g(gates[:, 3 * H :])
            o = f(gates[:, H : 2 * H] + p[H : 2 * H] * cell)
            return o * act(cell), cell

        xw = x @ w[d].T + (wb + rb)
        states = (_initial(h0, d, x, H), _initial(c0, d, x, H))
        parts.append(_unroll(xw, lengths, back, states, step))
    return _collect(parts)


_OPERANDS = (
    Operand("x"),
    Operand("w"),
    Operand("r"),
    Operand("bias", optional=True),
    Operand("lengths", optional=True),
    Operand("initial_h", optional=True),
)
_ATTRS = (
    Attr("hidden_size", AttrKind.INT),
    Attr("direction", AttrKind.STR, "forward"),  # forward, reverse, bidirectional
    Attr("activations", AttrKind.STRS),  # per direction, in the order of the ONNX equations
    Attr("alphas", AttrKind.FLOATS),  # one per activation, 0 where it takes none
    Attr("betas", AttrKind.FLOATS),
    Attr("clip", AttrKind.FLOAT, None),
)
# Hidden units are coupled through all gates and states, but fixed: each step feeds every unit into
# every other, so that dropping one neither leaves the others alone (pass) nor only zeroes it (sum).
# Directions are fixed because the attribute `direction` states their number.
_AXES = "s! b ~i, d! (g! h!) ~i, d! (g! h!) h!, d! (k! h!), b, d! b h!"
_STATE = "d! b h!"

rnn = OpSpec(
    name="rnn",
    source="ONNX RNN-22",
    operands=_OPERANDS,
    results=("y", "y_h"),
    attrs=_ATTRS,
    axes=f"{_AXES} -> s! d! b h!, {_STATE}",
    counts={"hidden_size": "h!"},
    infer=_infer,
    eval=_eval_rnn,
    flops=_flops,
)

gru = OpSpec(
    name="gru",
    source="ONNX GRU-22",
    operands=_OPERANDS,
    results=("y", "y_h"),
    attrs=(*_ATTRS, Attr("linear_before_reset", AttrKind.BOOL, False)),
    axes=f"{_AXES} -> s! d! b h!, {_STATE}",
    counts={"hidden_size": "h!"},
    infer=_infer,
    eval=_eval_gru,
    flops=_flops,
)

lstm = OpSpec(
    name="lstm",
    source="ONNX LSTM-22",
    operands=(
        *_OPERANDS,
        Operand("initial_c", optional=True),
        Operand("peepholes", optional=True),
    ),
    results=("y", "y_h", "y_c"),
    attrs=(*_ATTRS, Attr("input_forget", AttrKind.BOOL, False)),
    axes=f"{_AXES}, {_STATE}, d! (p! h!) -> s! d! b h!, {_STATE}, {_STATE}",
    counts={"hidden_size": "h!"},
    infer=_infer,
    eval=_eval_lstm,
    flops=_flops,
)

OPS: tuple[OpSpec, ...] = (rnn, gru, lstm)
