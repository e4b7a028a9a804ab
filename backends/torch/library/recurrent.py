"""Recurrent layers in the layout of ONNX: x [S, B, I], gates stacked per direction.

Shapes: w [D, G*H, I], r [D, G*H, H], bias [D, 2*G*H] with G gates in D directions; states
[D, B, H]; results y [S, D, B, H] and last states [D, B, H].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reorder_gates(x: Tensor, kind: str) -> Tensor:
    """Returns stacked gates in PyTorch's order: ONNX has i o f c and z r h."""
    if kind == "lstm":
        i, o, f, c = x.chunk(4)
        return torch.cat((i, f, c, o))
    if kind == "gru":
        z, r, h = x.chunk(3)
        return torch.cat((r, z, h))
    return x


def run_fused(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None,
    states: Sequence[Tensor | None],
    kind: str,
    direction: str,
) -> tuple[Tensor, ...]:
    """Returns a layer with the usual functions: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`."""
    num = w.shape[0]
    flat = []
    for d in range(num):
        flat += [reorder_gates(w[d], kind), reorder_gates(r[d], kind)]
        if bias is not None:
            flat += [reorder_gates(part, kind) for part in bias[d].chunk(2)]
    zero = torch.zeros((num, x.shape[1], r.shape[2]), dtype=x.dtype, device=x.device)
    initial = [zero if state is None else state for state in states]
    is_reverse = direction == "reverse"
    sequence = x.flip(0) if is_reverse else x
    settings = (flat, bias is not None, 1, 0.0, False, num == 2, False)
    if kind == "lstm":
        y, *last = torch.lstm(sequence, initial, *settings)
    else:
        function = {"gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}[kind]
        y, *last = function(sequence, initial[0], *settings)
    y = y.flip(0) if is_reverse else y
    return (y.reshape(*y.shape[:2], num, -1).transpose(1, 2), *last)


def activation_of(
    name: str, alpha: float, beta: float, clip: float | None
) -> Callable[[Tensor], Tensor]:
    """Returns an activation by its ONNX name, of clipped operands."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "Relu": F.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "Affine": lambda x: alpha * x + beta,
        "LeakyRelu": lambda x: F.leaky_relu(x, alpha),
        "ThresholdedRelu": lambda x: torch.where(x >= alpha, x, 0),
        "ScaledTanh": lambda x: alpha * torch.tanh(beta * x),
        "HardSigmoid": lambda x: (alpha * x + beta).clamp(0, 1),
        "Elu": lambda x: F.elu(x, alpha),
        "Softsign": F.softsign,
        "Softplus": F.softplus,
    }
    function = functions[name]
    if clip is None:
        return function
    return lambda x: function(x.clamp(-clip, clip))


def activations_of(
    direction: str,
    names: Sequence[str],
    alphas: Sequence[float],
    betas: Sequence[float],
    clip: float | None,
) -> list[tuple[bool, list[Callable[[Tensor], Tensor]]]]:
    """Returns (backward, activations) per direction."""
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    each = len(names) // len(backward)
    functions = [
        # ONNX Runtime clips what the gates take, not the cell state that the third function takes
        activation_of(name, alpha, beta, None if i % each == 2 else clip)
        for i, (name, alpha, beta) in enumerate(zip(names, alphas, betas, strict=True))
    ]
    return [(back, functions[d * each : (d + 1) * each]) for d, back in enumerate(backward)]


def unroll(
    x: Tensor,
    lengths: Tensor | None,
    backward: bool,
    states: Sequence[Tensor],
    step: Callable[..., tuple[Tensor, ...]],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs `step(x_t, *states)` over time; beyond a row's length y is 0 and states stay."""
    num_steps = x.shape[0]
    if lengths is None:
        ends = torch.full((x.shape[1],), num_steps, device=x.device)
    else:
        ends = lengths.to(torch.int64)
    steps = torch.arange(num_steps, device=x.device).unsqueeze(1)
    # a row's own order of time, which is its own inverse
    order = (
        torch.where(steps < ends, ends - 1 - steps, steps)
        if backward
        else steps.expand(-1, x.shape[1])
    )
    rows = torch.arange(x.shape[1], device=x.device)
    sequence = x[order, rows]
    current, results = tuple(states), []
    for t in range(num_steps):
        after = step(sequence[t], *current)
        keep = (t < ends).unsqueeze(1)
        current = tuple(torch.where(keep, a, b) for a, b in zip(after, current, strict=True))
        results.append(torch.where(keep, after[0], 0))
    y = torch.stack(results) if results else x.new_zeros((0, *states[0].shape))
    # ONNX Runtime gives zeros, not the initial state, for a row without any step
    some = (ends > 0).unsqueeze(1)
    return y[order, rows], tuple(torch.where(some, state, 0) for state in current)


def initial_of(state: Tensor | None, d: int, x: Tensor, r: Tensor) -> Tensor:
    """Returns one direction's initial state, zeros when there is none."""
    if state is not None:
        return state[d]
    return torch.zeros((x.shape[1], r.shape[2]), dtype=x.dtype, device=x.device)


def collect(parts: Sequence[tuple[Tensor, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """Returns the results of all directions."""
    y = torch.stack([part[0] for part in parts], 1)
    return (y, *(torch.stack(last) for last in zip(*(part[1] for part in parts), strict=True)))


def biases_of(bias: Tensor | None, d: int, r: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the biases of the input's and of the state's products."""
    if bias is None:
        zero = torch.zeros(r.shape[1], dtype=r.dtype, device=r.device)
        return zero, zero
    first, second = bias[d].chunk(2)
    return first, second


def run_rnn(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, lengths: Tensor | None,
    initial_h: Tensor | None, direction: str, activations: Sequence[str],
    alphas: Sequence[float], betas: Sequence[float], clip: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns a simple recurrent layer (ONNX RNN-22)."""
    parts = []
    settings = activations_of(direction, activations, alphas, betas, clip)
    for d, (backward, (f,)) in enumerate(settings):
        wb, rb = biases_of(bias, d, r)

        def step(
            xt: Tensor, h: Tensor, r: Tensor = r[d], f: Callable[[Tensor], Tensor] = f
        ) -> tuple[Tensor, ...]:
            return (f(xt + h @ r.t()),)

        xw = F.linear(x, w[d], wb + rb)
        parts.append(unroll(xw, lengths, backward, (initial_of(initial_h, d, x, r),), step))
    return collect(parts)


def run_gru(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, lengths: Tensor | None,
    initial_h: Tensor | None, direction: str, activations: Sequence[str],
    alphas: Sequence[float], betas: Sequence[float], clip: float | None,
    linear_before_reset: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns a layer of gated recurrent units (ONNX GRU-22)."""
    size = r.shape[2]
    parts = []
    settings = activations_of(direction, activations, alphas, betas, clip)
    for d, (backward, (f, g)) in enumerate(settings):
        wb, rb = biases_of(bias, d, r)
        # the reset gate may act on the recurrent part with its bias
        gates_bias = wb + torch.cat((rb[: 2 * size], torch.zeros_like(rb[2 * size :])))

        def step(
            xt: Tensor,
            h: Tensor,
            r: Tensor = r[d],
            hidden: Tensor = rb[2 * size :],
            f: Callable[[Tensor], Tensor] = f,
            g: Callable[[Tensor], Tensor] = g,
        ) -> tuple[Tensor, ...]:
            update, reset = f(xt[:, : 2 * size] + h @ r[: 2 * size].t()).chunk(2, 1)
            if linear_before_reset:
                recurrent = reset * (h @ r[2 * size :].t() + hidden)
            else:
                recurrent = (reset * h) @ r[2 * size :].t() + hidden
            candidate = g(xt[:, 2 * size :] + recurrent)
            return ((1 - update) * candidate + update * h,)

        xw = F.linear(x, w[d], gates_bias)
        parts.append(unroll(xw, lengths, backward, (initial_of(initial_h, d, x, r),), step))
    return collect(parts)


def run_lstm(
    x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, lengths: Tensor | None,
    initial_h: Tensor | None, initial_c: Tensor | None, peepholes: Tensor | None,
    direction: str, activations: Sequence[str], alphas: Sequence[float],
    betas: Sequence[float], clip: float | None, input_forget: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns a layer of long short-term memory (ONNX LSTM-22)."""
    size = r.shape[2]
    parts = []
    settings = activations_of(direction, activations, alphas, betas, clip)
    for d, (backward, (f, g, act)) in enumerate(settings):
        wb, rb = biases_of(bias, d, r)
        peep = x.new_zeros(3 * size) if peepholes is None else peepholes[d]

        def step(
            xt: Tensor,
            h: Tensor,
            cell: Tensor,
            r: Tensor = r[d],
            peep: Tensor = peep,
            f: Callable[[Tensor], Tensor] = f,
            g: Callable[[Tensor], Tensor] = g,
            act: Callable[[Tensor], Tensor] = act,
        ) -> tuple[Tensor, ...]:
            gate_i, gate_o, gate_f, gate_c = (xt + h @ r.t()).chunk(4, 1)
            peep_i, peep_o, peep_f = peep.chunk(3)
            i = f(gate_i + peep_i * cell)
            forget = 1 - i if input_forget else f(gate_f + peep_f * cell)
            cell = forget * cell + i * g(gate_c)
            o = f(gate_o + peep_o * cell)
            return o * act(cell), cell

        xw = F.linear(x, w[d], wb + rb)
        states = (initial_of(initial_h, d, x, r), initial_of(initial_c, d, x, r))
        parts.append(unroll(xw, lengths, backward, states, step))
    return collect(parts)
