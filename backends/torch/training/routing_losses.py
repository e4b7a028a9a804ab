"""Losses of a router's scores, and the bias that evens loads out without one.

Scores are those before the softmax, [*b, E]. Positions that a mask leaves out do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.backends.torch.training.losses import masked_mean


@dataclass(slots=True, eq=False)
class StepCounts:
    """How often each expert was chosen since a step of the training began, in all processes.

    The sum is a constant of the loss: no gradient flows through a choice.

    Args:
        batches_per_step: Batches of all processes after which the next step begins.
    """

    batches_per_step: int
    _counts: Tensor | None = None
    _batches: int = 0

    def add(self, counts: Tensor) -> Tensor:
        """Returns the counts of the step with those of one more batch, f[E]."""
        if not torch.is_grad_enabled():
            return counts  # held-out batches belong to no step
        counts, num_processes = counts.detach().clone(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            num_processes = dist.get_world_size()
        if self._counts is not None and self._batches < self.batches_per_step:
            counts += self._counts
        else:
            self._batches = 0
        self._counts = counts
        self._batches += num_processes
        return counts


def choice_counts(scores: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """Returns how many tokens choose each expert, f[E]; equal scores: the lower expert."""
    rows = scores.detach().flatten(0, -2)
    if mask is not None:
        rows = rows[mask.flatten() != 0]
    chosen = rows.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    return torch.bincount(chosen.flatten(), minlength=scores.shape[-1]).to(torch.float32)


def balance(
    scores: Tensor,
    top_k: int,
    mask: Tensor | None = None,
    counts: StepCounts | None = None,
    sizes: Sequence[float] = (),
) -> Tensor:
    """Returns `E Σ s_i f_i p_i`: f the shares of the choices, p the mean probabilities.

    s_i is what an expert's size is of the mean size, 1 without `sizes`.

    Source: Fedus et al., Switch Transformers, 2021, eq. 4; with `counts` Qiu et al., Demons in the
    Detail, 2025, eq. 3: `f` is that of all batches of the step so far. With `sizes` Wang et al.,
    HMoE, 2024, eq. 7.
    """
    found = choice_counts(scores, top_k, mask)
    if counts is not None:
        found = counts.add(found)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    shares = found.to(wide.dtype) / found.sum().clamp(min=1.0).to(wide.dtype)
    if len(sizes):
        widths = torch.tensor(sizes, dtype=wide.dtype, device=wide.device)
        shares = shares * widths / widths.mean()
    each = (wide.softmax(-1) * shares).sum(-1)
    return scores.shape[-1] * masked_mean(each, mask)


def router_z(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean of `(log Σ exp s)²`.

    Source: Zoph et al., ST-MoE, 2022, eq. 5.
    """
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return masked_mean(wide.logsumexp(-1).square(), mask)


def margin_balance(margins: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns `E Σ f_i m_i`: f the shares of tokens of a margin from 0 on, m the mean margins.

    Args:
        margins: What probabilities have beyond a threshold, f[*b, E].
        mask: Nonzero where positions count.

    Source: Liu and Luo, AdaMoLE, 2024, as its layers compute it.
    """
    rows = (margins if margins.dtype == torch.float64 else margins.float()).flatten(0, -2)
    if mask is not None:
        rows = rows[mask.flatten() != 0]
    num_rows = max(len(rows), 1)
    shares = (rows.detach() >= 0).to(rows.dtype).sum(0) / num_rows
    return margins.shape[-1] * (shares * rows.sum(0) / num_rows).sum()


def balanced_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """Returns the bias of the choice, one step nearer to even loads.

    It goes up by `rate` where an expert has less than the mean load, and down where it has more.

    Source: Wang et al., Auxiliary-Loss-Free Load Balancing, 2024, algorithm 1.
    """
    return bias + rate * torch.sign(counts.mean() - counts).to(bias.dtype)
