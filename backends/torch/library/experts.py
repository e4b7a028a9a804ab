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


def expert_quick_sigmoid(x: Tensor) -> Tensor:
    """Returns 1 / (1 + exp(-1.702 x))."""
    return torch.sigmoid(1.702 * x)


def expert_identity(x: Tensor) -> Tensor:
    """Returns x."""
    return x


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


def route_given(
    router: Tensor, top_k: int, bias: Tensor | None = None, renormalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (experts, weights); the router's numbers are the weights, zero: not chosen."""
    scores = router.flatten(0, -2)
    chosen = choose_experts(scores.abs(), top_k)
    return chosen, weigh(scores.gather(-1, chosen), renormalize, scale)


def route_further(
    router: Tensor,
    top_k: int,
    scoring: str,
    select: str,
    threshold: float,
    capacity: float,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    renormalize: bool = False,
    scale: float = 1.0,
    groups: int = 0,
    top_groups: int = 0,
    group_best: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (experts, weights, taken) of choices that are not all the best `top_k`.

    Args:
        router: Scores [*b, E].
        top_k: Most experts of a token; where experts choose, their number on mean.
        scoring: `softmax`, `topk_softmax` or `sigmoid`.
        select: `top_k`, `top_p`, `threshold`, `expert_choice` or `groups`.
        threshold: Probability that suffices, or the least score.
        capacity: Tokens of an expert, times tokens * top_k / E; 0: all that choose it.
        bias: Chooses but does not weigh, [E].
        gain: Weights are 1 + gain * weight, [E].
        renormalize: Whether weights sum to 1.
        scale: Multiplies weights.
        groups: Groups of experts.
        top_groups: Groups of a token whose experts are asked.
        group_best: Experts whose scores a group is rated by.
    """
    scores = router.flatten(0, -2)
    num_tokens, num = scores.shape
    if scoring != "topk_softmax":
        scores = scores.softmax(-1) if scoring == "softmax" else torch.sigmoid(scores)
    ranked = scores if bias is None else scores + bias
    if select == "groups":
        parts = ranked.unflatten(-1, (groups, num // groups))
        best = parts.topk(group_best, dim=-1).values.sum(-1)
        asked = torch.zeros_like(best).scatter(-1, choose_experts(best, top_groups), 1.0)
        ranked = parts.where(asked.unsqueeze(-1) != 0, float("-inf")).flatten(-2)
    if select == "expert_choice":
        places = torch.arange(num_tokens, device=scores.device)
        fits = num * places < capacity * (top_k * num_tokens)
        order = ranked.sort(dim=0, descending=True, stable=True).indices
        taken = torch.zeros_like(ranked, dtype=torch.bool)
        taken = taken.scatter(0, order, fits.unsqueeze(1).expand_as(ranked))
        chosen = torch.arange(num, device=scores.device).expand(num_tokens, num)
        weights = scores.where(taken, 0)
    else:
        chosen = choose_experts(ranked, top_k)
        weights = scores.gather(-1, chosen)
        taken = torch.ones_like(weights, dtype=torch.bool)
        if select == "top_p" and threshold < 1:
            taken = weights.cumsum(-1).roll(1, -1) < threshold
        elif select == "threshold":
            taken = weights >= threshold
        taken = torch.cat((torch.ones_like(taken[:, :1]), taken[:, 1:]), -1)
        if scoring == "topk_softmax":
            weights = weights.softmax(-1)
        weights = weights.where(taken, 0)
    if renormalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.where(total != 0, 1)
    if capacity and select != "expert_choice":
        # first choices before second ones, then in order of the tokens
        asked = F.one_hot(chosen, num) * taken.unsqueeze(-1)
        flat = asked.transpose(0, 1).reshape(-1, num)
        fits = num * (flat.cumsum(0) - flat) < capacity * (top_k * num_tokens)
        fits = fits.reshape(top_k, num_tokens, num).transpose(0, 1)
        taken = taken & fits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    if gain is not None:
        weights = 1 + gain[chosen] * weights
    weights = weights.where(taken, 0)
    return chosen, weights if scale == 1 else weights * scale, taken


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
    limit: float = 0.0,
    up_offset: float = 0.0,
    weigh_input: bool = False,
    taken: Tensor | None = None,
    bounds: str = "clip",
    gate_limit: float = 0.0,
    norm_epsilon: float = 0.0,
) -> Tensor:
    """Returns the weighted sum over the chosen experts of their feed-forward layers.

    Run as it is, tokens are sorted by expert and every expert computes its own: one grouped product
    per layer. In a graph, whose shapes cannot depend on the routing, every expert computes every
    token.

    Args:
        x: [*b, D].
        chosen: [tokens, top_k].
        weights: [tokens, top_k].
        up: [E, F, D].
        down: [E, O, F].
        activation: Of the gate, or of `up` without one; with soft bounds, what multiplies the gate.
        gate: [E, F, D].
        up_bias: [E, F].
        down_bias: [E, O].
        gate_bias: [E, F].
        limit: What clips the gate from above and what it multiplies on both sides; 0: nothing.
        up_offset: Added to what the gate multiplies.
        weigh_input: Whether weights multiply what an expert reads.
        taken: Which of the chosen compute the token, [tokens, top_k]; the weight of others is 0.
        bounds: How the limit bounds: `clip`, `clip_after` (the gate behind its activation), `soft`.
        gate_limit: That of the gate; 0: `limit`.
        norm_epsilon: Of the root mean square that results are divided by; 0: they are not.
    """
    tokens, num = x.flatten(0, -2), up.shape[0]
    if torch.compiler.is_compiling():
        dense = torch.zeros((tokens.shape[0], num), dtype=weights.dtype, device=x.device)
        share = dense.scatter(1, chosen, weights).t().unsqueeze(2)
        rows = tokens.unsqueeze(0)
        if weigh_input:
            rows, share = (rows * share).to(x.dtype), (share != 0).to(x.dtype)
        up_bias, down_bias, gate_bias = (
            None if bias is None else bias.unsqueeze(1) for bias in (up_bias, down_bias, gate_bias)
        )
        hidden = add_bias(rows @ up.transpose(1, 2), up_bias)
        gates = None if gate is None else add_bias(rows @ gate.transpose(1, 2), gate_bias)
        hidden = gate_hidden(hidden, gates, activation, limit, up_offset, bounds, gate_limit)
        each = norm_results(add_bias(hidden @ down.transpose(1, 2), down_bias), norm_epsilon)
        return (each * share).sum(0).reshape(*x.shape[:-1], down.shape[1]).to(x.dtype)
    owner, order = chosen.flatten().sort(stable=True)
    if taken is not None:
        kept = taken.flatten()[order]
        owner, order = owner[kept], order[kept]
    rows = order // chosen.shape[1]
    counts = torch.bincount(owner, minlength=num)
    share, part = weights.flatten()[order].unsqueeze(1), tokens[rows]
    if weigh_input:
        part, share = (part * share).to(x.dtype), (share != 0).to(x.dtype)
    up_bias, down_bias, gate_bias = (
        None if bias is None else bias[owner] for bias in (up_bias, down_bias, gate_bias)
    )
    hidden = add_bias(grouped_product(part, up, counts), up_bias)
    gates = None if gate is None else add_bias(grouped_product(part, gate, counts), gate_bias)
    hidden = gate_hidden(hidden, gates, activation, limit, up_offset, bounds, gate_limit)
    each = add_bias(grouped_product(hidden, down, counts), down_bias)
    scaled = norm_results(each, norm_epsilon) * share
    out = torch.zeros((tokens.shape[0], down.shape[1]), dtype=scaled.dtype, device=x.device)
    return out.index_add(0, rows, scaled).reshape(*x.shape[:-1], down.shape[1]).to(x.dtype)


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x with a bias, where there is one."""
    return x if bias is None else x + bias


def gate_hidden(
    hidden: Tensor,
    gates: Tensor | None,
    activation: Callable[[Tensor], Tensor],
    limit: float,
    up_offset: float,
    bounds: str,
    gate_limit: float,
) -> Tensor:
    """Returns the hidden channels behind the activation; `apply_experts` says what they are."""
    if gates is None:
        return activation(hidden)
    top = gate_limit or limit
    if limit and bounds == "soft":
        hidden = limit * torch.tanh(hidden / limit)
        gates = top * torch.tanh(gates / top) * activation(gates)
    elif limit:
        hidden = hidden.clamp(-limit, limit)
        is_after = bounds == "clip_after"
        gates = activation(gates).clamp(max=top) if is_after else activation(gates.clamp(max=top))
    else:
        gates = activation(gates)
    return gates * (hidden + up_offset if up_offset else hidden)


def norm_results(x: Tensor, epsilon: float) -> Tensor:
    """Returns what experts give over its root mean square, or as it is without an epsilon."""
    if not epsilon:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Returns [N, out]: every row of x times the transposed matrix of its expert.

    One kernel where PyTorch has it (bfloat16 on a GPU, rows of whole 16 bytes), else one product
    per expert that has rows. Both have gradients.

    Args:
        x: [N, in], sorted by expert.
        weight: [E, out, in].
        counts: i64[E], rows of every expert.
    """
    is_aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0
    if x.is_cuda and x.dtype is torch.bfloat16 and is_aligned and len(x):
        ends = counts.cumsum(0).to(torch.int32)
        return torch._grouped_mm(x, weight.transpose(1, 2), offs=ends)
    sizes = counts.tolist()
    parts = [F.linear(part, weight[i]) for i, part in enumerate(x.split(sizes)) if len(part)]
    return torch.cat(parts) if parts else x.new_zeros((0, weight.shape[1]))
