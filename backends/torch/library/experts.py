"""Mixture of experts: routing, and the experts' feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_relu(x: Tensor) -> Tensor:
    """Returns max(x, 0)."""
    return F.relu(x)


def expert_relu2(x: Tensor) -> Tensor:
    """Returns max(x, 0)^2."""
    return F.relu(x).square()


def expert_quick_gelu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def expert_hard_swish(x: Tensor) -> Tensor:
    """Returns x * clip(x / 6 + 1/2, 0, 1)."""
    return F.hardswish(x)


def expert_sigmoid(x: Tensor) -> Tensor:
    """Returns 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def expert_silu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(x)."""
    return F.silu(x)


def expert_gelu(x: Tensor) -> Tensor:
    """Returns x * P(normal < x)."""
    return F.gelu(x)


def expert_gelu_tanh(x: Tensor) -> Tensor:
    """Returns the tanh approximation of `expert_gelu`."""
    return F.gelu(x, approximate="tanh")


def choose_experts(ranked: Tensor, top_k: int) -> Tensor:
    """Returns the experts with the highest scores, [tokens, top_k]; equal: the lower one."""
    return ranked.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]


def weigh(weights: Tensor, renormalize: bool, scale: float) -> Tensor:
    """Returns routing weights, perhaps made to sum to 1, times a factor."""
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights if scale == 1 else weights * scale


def route_softmax(
    router: Tensor, top_k: int, bias: Tensor | None = None, renormalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (experts, weights), [tokens, top_k] each; the softmax is over all experts."""
    scores = router.flatten(0, -2).softmax(-1)
    chosen = choose_experts(scores if bias is None else scores + bias, top_k)
    return chosen, weigh(scores.gather(-1, chosen), renormalize, scale)


def route_chosen(
    router: Tensor, top_k: int, bias: Tensor | None = None, renormalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (experts, weights); the softmax is over the chosen experts alone."""
    scores = router.flatten(0, -2)
    chosen = choose_experts(scores if bias is None else scores + bias, top_k)
    return chosen, weigh(scores.gather(-1, chosen).softmax(-1), renormalize, scale)


def route_sigmoid(
    router: Tensor, top_k: int, bias: Tensor | None = None, renormalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (experts, weights); every expert is scored on its own, the bias only chooses."""
    scores = torch.sigmoid(router.flatten(0, -2))
    chosen = choose_experts(scores if bias is None else scores + bias, top_k)
    return chosen, weigh(scores.gather(-1, chosen), renormalize, scale)


def apply_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Callable[[Tensor], Tensor],
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    """Returns the weighted sum over the chosen experts of their feed-forward layers.

    Run as it is, every expert computes its tokens alone. In a graph, whose shapes cannot depend on
    the routing, every expert computes every token.

    Args:
        x: [*b, D].
        chosen: [tokens, top_k].
        weights: [tokens, top_k].
        up: [E, F, D].
        down: [E, O, F].
        activation: Of the gate, or of `up` without one.
        gate: [E, F, D].
        up_bias: [E, F].
        down_bias: [E, O].
        gate_bias: [E, F].
    """
    tokens = x.flatten(0, -2)
    num = up.shape[0]
    if torch.compiler.is_compiling():
        dense = torch.zeros((tokens.shape[0], num), dtype=weights.dtype, device=x.device)
        dense = dense.scatter(1, chosen, weights)
        each = [
            run_expert(tokens, i, up, down, activation, gate, up_bias, down_bias, gate_bias)
            * dense[:, i : i + 1]
            for i in range(num)
        ]
        return torch.stack(each).sum(0).reshape(*x.shape[:-1], down.shape[1]).to(x.dtype)
    order = chosen.flatten().argsort(stable=True)
    rows = order // chosen.shape[1]
    counts = torch.bincount(chosen.flatten(), minlength=num).tolist()
    parts = [
        run_expert(part, i, up, down, activation, gate, up_bias, down_bias, gate_bias)
        for i, part in enumerate(tokens[rows].split(counts))
        if len(part)
    ]
    if not parts:
        return x.new_zeros((*x.shape[:-1], down.shape[1]))
    scaled = torch.cat(parts) * weights.flatten()[order].unsqueeze(1)
    out = torch.zeros((tokens.shape[0], down.shape[1]), dtype=scaled.dtype, device=x.device)
    out = out.index_add(0, rows, scaled)
    return out.reshape(*x.shape[:-1], down.shape[1]).to(x.dtype)


def run_expert(
    x: Tensor,
    idx: int,
    up: Tensor,
    down: Tensor,
    activation: Callable[[Tensor], Tensor],
    gate: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
) -> Tensor:
    """Returns one expert's feed-forward layer of rows x [N, D]."""
    hidden = F.linear(x, up[idx], None if up_bias is None else up_bias[idx])
    if gate is None:
        hidden = activation(hidden)
    else:
        gates = F.linear(x, gate[idx], None if gate_bias is None else gate_bias[idx])
        hidden = activation(gates) * hidden
    return F.linear(hidden, down[idx], None if down_bias is None else down_bias[idx])
