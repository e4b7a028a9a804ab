"""Losses as plain functions of tensors, means over positions; f32 inside, whatever comes in.

Positions are the leading axes. A mask is nonzero where a position counts; its axes are leading axes
of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean of `(s - t)²`."""
    return masked_mean((_wide(student) - _wide(teacher)).square(), mask)


def normalized_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns `‖s - t‖² / ‖t‖²` over all positions that count: 1 for a student of zeros.

    Source: LAPTOP-Diff, 2024, normalized feature distillation: features are weighed by the inverse
    of the teacher's norm, squared here, so that the scale of a feature cancels.
    """
    teacher = _wide(teacher)
    error = masked_mean((_wide(student) - teacher).square(), mask)
    least = torch.finfo(teacher.dtype).tiny ** 0.5  # a teacher of zeros leaves a number
    return error / masked_mean(teacher.square(), mask).clamp(min=least)


def kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Returns `τ² KL(softmax(t / τ) ‖ softmax(s / τ))` over the last axis.

    Source: Hinton et al., 2015; MEAL V2, 2020, eq. 2, where the teacher is an ensemble
    (`ensemble_logits`).
    """
    log_student = F.log_softmax(_wide(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(_wide(teacher) / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * masked_mean(divergence, mask)


def nkd(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Returns `-T_y log S_y - g τ² Σ_{i≠y} N(T)_i log N(S)_i`, `g` being `gamma`.

    `N` is the softmax over the classes other than the label `y`, so that both sides sum to one.

    Source: Yang et al., 2023, eq. 7.

    Args:
        student: Logits `[..., C]`.
        teacher: Logits `[..., C]`.
        label: i64 `[...]`.
        gamma: Weight of the classes other than the label.
        temperature: Divides their logits.
        mask: Positions that count.
    """
    student, teacher = _wide(student), _wide(teacher)
    target = label.unsqueeze(-1)
    log_s = F.log_softmax(student, dim=-1).gather(-1, target).squeeze(-1)
    t = F.softmax(teacher, dim=-1).gather(-1, target).squeeze(-1)
    log_ns = F.log_softmax(others(student, target) / temperature, dim=-1)
    nt = F.softmax(others(teacher, target) / temperature, dim=-1)
    rest = -(nt * log_ns).sum(-1)
    return masked_mean(-t * log_s + gamma * temperature**2 * rest, mask)


def others(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the logits `[..., C - 1]` of the classes other than `target` `[..., 1]`."""
    num_classes = logits.shape[-1]
    places = torch.arange(num_classes - 1, device=logits.device).expand(*target.shape[:-1], -1)
    return logits.gather(-1, places + (places >= target))


def cross_entropy(
    student: Tensor,
    label: Tensor,
    smoothing: float = 0.0,
    ignored: int = -100,
    mask: Tensor | None = None,
    stable: bool = False,
) -> Tensor:
    """Returns the mean cross-entropy of logits `[..., C]` with labels i64 `[...]`."""
    counts = label != ignored
    if stable:
        each = stablemax_cross_entropy(student, label.where(counts, 0), smoothing)
    else:
        logits = _wide(student).flatten(0, -2)
        each = F.cross_entropy(
            logits, label.flatten(), label_smoothing=smoothing, ignore_index=ignored,
            reduction="none",
        ).view(label.shape)  # fmt: skip
    return masked_mean(each, counts if mask is None else counts & (mask != 0))


def stablemax_cross_entropy(student: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns `-log p` of the labels `[...]`, p = f(x) / sum f, f(x) = x + 1 or 1 / (1 - x).

    In f64, whatever comes in: sums of large logits lose the small ones in f32.

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, 2025, eq. 6.
    """
    x = student.double()
    # 1 / (1 - x) is computed for no positive x: its gradient would be NaN at 1
    raised = x.relu() + 1 / (1 - x.clamp(max=0))
    logs = raised.log() - raised.sum(-1, keepdim=True).log()
    own = -logs.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    return (1 - smoothing) * own - smoothing * logs.mean(-1)


def ensemble_logits(teachers: Sequence[Tensor]) -> Tensor:
    """Returns logits whose softmax is the average of the teachers' softmaxes.

    Source: MEAL V2, 2020, eq. 1.
    """
    if len(teachers) == 1:
        return teachers[0]
    each = torch.stack([F.log_softmax(_wide(teacher), dim=-1) for teacher in teachers])
    return torch.logsumexp(each, dim=0) - torch.log(torch.tensor(float(len(teachers))))


def ensemble_features(teachers: Sequence[Tensor]) -> Tensor:
    """Returns the average of the teachers' values."""
    return teachers[0] if len(teachers) == 1 else torch.stack(tuple(teachers)).mean(0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean over the positions that count; 0 where none does."""
    if mask is None:
        return x.mean()
    per_position = x.flatten(mask.ndim).mean(-1) if x.ndim > mask.ndim else x
    weights = mask.to(per_position.dtype)
    return (per_position * weights).sum() / weights.sum().clamp(min=1.0)
