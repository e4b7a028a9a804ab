"""What an expert does between its layers: nine activations, three ways to bound, and gradients.

`limit` L bounds what a gate multiplies to [-L, L], and the gate itself from above: `clip` before
its activation (gpt-oss), `clip_after` behind it (Step 3.7); `soft` puts L tanh(x / L) for x, of a
swish for its linear factor alone, whose sigmoid reads the gate as it is (Inkling 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regraft.backends.triton.kernels.attention_tiles import exact_tanh
from regraft.backends.triton.kernels.gated import normal_cdf, tanh_gate

EXPERT_BOUNDS = ("clip", "clip_after", "soft")

EXPERT_ACTIVATIONS = (
    "relu", "relu2", "silu", "quick_gelu", "gelu", "gelu_tanh", "hard_swish", "sigmoid", "identity",
)  # fmt: skip


@triton.jit
def expert_activation(x, ACTIVATION: tl.constexpr):
    """Returns act(x); NaN stays, which `tl.maximum` would drop."""
    if ACTIVATION == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "relu2":
        y = tl.where(x < 0.0, 0.0, x * x)
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "gelu":
        y = x * normal_cdf(x)
    elif ACTIVATION == "gelu_tanh":
        y = x * tanh_gate(x)
    elif ACTIVATION == "hard_swish":
        y = x * tl.minimum(tl.maximum(x * (1.0 / 6.0) + 0.5, 0.0), 1.0)
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(x)
    else:
        y = x
    return y


@triton.jit
def bounded_value(x, limit, BOUNDS: tl.constexpr):
    """Returns what a gate multiplies, bounded."""
    y = x
    if BOUNDS == "soft":
        y = limit * exact_tanh(x / limit)
    elif BOUNDS != "none":
        y = tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))
    return y


@triton.jit
def bounded_gate(x, limit, ACTIVATION: tl.constexpr, BOUNDS: tl.constexpr):
    """Returns act(x), bounded."""
    if BOUNDS == "soft":
        alpha: tl.constexpr = 1.702 if ACTIVATION == "quick_gelu" else 1.0
        y = limit * exact_tanh(x / limit) * tl.sigmoid(alpha * x)
    elif BOUNDS == "clip":
        y = expert_activation(tl.where(x > limit, limit, x), ACTIVATION)
    else:
        y = expert_activation(x, ACTIVATION)
        if BOUNDS == "clip_after":
            y = tl.where(y > limit, limit, y)
    return y


def activate_expert(x: Tensor, activation: str) -> Tensor:
    """Returns act(x)."""
    match activation:
        case "relu":
            return torch.relu(x)
        case "relu2":
            return torch.relu(x).square()
        case "silu":
            return torch.nn.functional.silu(x)
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "gelu":
            return torch.nn.functional.gelu(x)
        case "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        case "hard_swish":
            return torch.nn.functional.hardswish(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case _:
            return x


def activation_gradient(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    """Returns dy * act'(x)."""
    aten, gradient = torch.ops.aten, dy
    match activation:
        case "relu":
            gradient = torch.where(x > 0, dy, 0)
        case "relu2":
            gradient = 2 * dy * torch.relu(x)
        case "silu":
            gradient = aten.silu_backward(dy, x)
        case "quick_gelu":
            s = torch.sigmoid(1.702 * x)
            gradient = dy * s * (1 + 1.702 * x * (1 - s))
        case "gelu":
            gradient = aten.gelu_backward(dy, x)
        case "gelu_tanh":
            gradient = aten.gelu_backward(dy, x, approximate="tanh")
        case "hard_swish":
            gradient = aten.hardswish_backward(dy, x)
        case "sigmoid":
            gradient = aten.sigmoid_backward(dy, torch.sigmoid(x))
    return gradient


def hidden_channels(
    hidden: Tensor, gates: Tensor | None, activation: str, bounds: str, limit: float,
    gate_limit: float, up_offset: float,
) -> Tensor:  # fmt: skip
    """Returns what the last layer reads of both products."""
    if gates is None:
        return activate_expert(hidden, activation)
    opened, values = _bounded(hidden, gates, activation, bounds, limit, gate_limit)
    return opened * (values + up_offset)


def _bounded(
    hidden: Tensor, gates: Tensor, activation: str, bounds: str, limit: float, gate_limit: float
) -> tuple[Tensor, Tensor]:
    """Returns the gate behind its activation, and what it multiplies."""
    match bounds:
        case "soft":
            slope = 1.702 if activation == "quick_gelu" else 1.0
            opened = gate_limit * torch.tanh(gates / gate_limit) * torch.sigmoid(slope * gates)
            return opened, limit * torch.tanh(hidden / limit)
        case "clip":
            opened = activate_expert(gates.clamp(max=gate_limit), activation)
            return opened, hidden.clamp(-limit, limit)
        case "clip_after":
            opened = activate_expert(gates, activation).clamp(max=gate_limit)
            return opened, hidden.clamp(-limit, limit)
        case _:
            return activate_expert(gates, activation), hidden


def hidden_gradients(
    dy: Tensor, hidden: Tensor, gates: Tensor | None, activation: str, bounds: str, limit: float,
    gate_limit: float, up_offset: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Returns the gradients by the two products."""
    if gates is None:
        return activation_gradient(dy, hidden, activation), None
    opened, values = _bounded(hidden, gates, activation, bounds, limit, gate_limit)
    dhidden, dopened = dy * opened, dy * (values + up_offset)
    match bounds:
        case "soft":
            slope = 1.702 if activation == "quick_gelu" else 1.0
            s, t = torch.sigmoid(slope * gates), torch.tanh(gates / gate_limit)
            dgates = dopened * s * ((1 - t * t) + gate_limit * t * slope * (1 - s))
            return dhidden * (1 - torch.tanh(hidden / limit).square()), dgates
        case "clip":
            dgates = activation_gradient(dopened, gates.clamp(max=gate_limit), activation)
            dgates = torch.where(gates <= gate_limit, dgates, 0)
        case "clip_after":
            dgates = activation_gradient(dopened, gates, activation)
            dgates = torch.where(activate_expert(gates, activation) <= gate_limit, dgates, 0)
        case _:
            return dhidden, activation_gradient(dopened, gates, activation)
    return torch.where(hidden.abs() <= limit, dhidden, 0), dgates
