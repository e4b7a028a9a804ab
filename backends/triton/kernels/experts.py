"""A mixture's experts: tokens sorted by expert, two grouped products, and the weighted sum back.

Nothing waits for the routing to reach the host, no shape depends on it, and every sum has one
order. Tokens that an expert has no room for are sorted behind the last expert's: nobody's rows,
whose results are zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from regraft.backends.triton.kernels.grouped import grouped_linear
from regraft.backends.triton.kernels.grouped_hidden import grouped_hidden
from regraft.backends.triton.kernels.norms import rms_norm


def mix_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    num: int,
    hidden_of: Callable[..., Tensor],
    results_of: Callable[..., Tensor],
    weigh_input: bool,
    taken: Tensor | None,
    norm_epsilon: float,
) -> Tensor:
    """Returns the weighted sum over the chosen experts of what two products make of tokens.

    Args:
        x: [*b, D].
        chosen: i64[tokens, top_k].
        weights: [tokens, top_k].
        num: How many experts there are.
        hidden_of: Hidden channels of tokens, of `counts` of experts and of which token each of
            the `rows` is.
        results_of: What experts give, of hidden channels, of `counts` and of a row's `share`.
        weigh_input: Whether weights multiply what an expert reads.
        taken: Which of the chosen compute the token, [tokens, top_k]; the weight of others is 0.
        norm_epsilon: Of the root mean square that results are divided by; 0: they are not.
    """
    tokens, top_k = x.flatten(0, -2), chosen.shape[1]
    owner = chosen if taken is None else chosen.where(taken, num)
    owner, order = owner.flatten().sort(stable=True)
    ends = torch.searchsorted(owner, torch.arange(num, device=x.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    share = weights.flatten()[order]
    rows: Tensor | None = order // top_k
    part = tokens
    if weigh_input:
        part = (tokens[rows] * share.unsqueeze(1)).to(x.dtype)
        share, rows = (share != 0).to(x.dtype), None
    hidden = hidden_of(part, counts=counts, rows=rows)
    if norm_epsilon:
        each = results_of(hidden, counts=counts)
        each = rms_norm(each, torch.ones_like(each[0]), eps=norm_epsilon)
        each = (each * share.unsqueeze(1)).to(x.dtype)
    else:
        each = results_of(hidden, counts=counts, share=share)
    place = order.argsort().unflatten(0, (-1, top_k))  # of a token's rows among the sorted ones
    total = each[place].sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return total.to(x.dtype).reshape(*x.shape[:-1], each.shape[1])


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
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
    precision: str = "ieee",
) -> Tensor:
    """Returns the weighted sum over the chosen experts of their feed-forward layers.

    Args:
        x: [*b, D].
        chosen: i64[tokens, top_k].
        weights: [tokens, top_k].
        up: [E, F, D].
        down: [E, O, F].
        activation: Of the gate, or of `up` without one; see `grouped_hidden`.
        gate: [E, F, D].
        up_bias: [E, F].
        down_bias: [E, O].
        gate_bias: [E, F].
        limit: What bounds the gate from above and what it multiplies on both sides; 0: nothing.
        up_offset: Added to what the gate multiplies.
        weigh_input: Whether weights multiply what an expert reads.
        taken: Which of the chosen compute the token, [tokens, top_k]; the weight of others is 0.
        bounds: How the limit bounds; see `grouped_hidden`.
        gate_limit: That of the gate; 0: `limit`.
        norm_epsilon: Of the root mean square that results are divided by; 0: they are not.
        precision: Of f32 products: `ieee`, `tf32` or `tf32x3`.
    """
    hidden_of = functools.partial(
        grouped_hidden, up=up, gate=gate, activation=activation, up_bias=up_bias,
        gate_bias=gate_bias, limit=limit, up_offset=up_offset, bounds=bounds,
        gate_limit=gate_limit, precision=precision,
    )  # fmt: skip
    results_of = functools.partial(grouped_linear, weight=down, bias=down_bias, precision=precision)
    return mix_experts(
        x, chosen, weights, up.shape[0], hidden_of, results_of, weigh_input, taken, norm_epsilon
    )
