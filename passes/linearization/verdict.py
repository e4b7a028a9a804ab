"""The verdict of an audit: what a model is, by what is lost when a part of it is taken away."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from regraft.passes.linearization.audit import Ablation

MATTERS = 0.05
"""A branch matters whose removal costs this part of what removing both costs."""


class Verdict(enum.Enum):
    """What a model is."""

    SOFTMAX = "softmax"  # nothing was linearized
    LINEAR = "linear"  # no windows
    HYBRID = "hybrid"  # both branches matter
    WINDOW = "window"  # the linear branch does not matter
    NO_WINDOW = "linear, its window idle"
    IDLE = "attention does not matter here"  # all of it can go

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict with what it rests on.

    Attributes:
        verdict: What the model is, on this data.
        linear_share: What is lost without the linear branch, of what is lost without both.
        window_share: The same without the window.
    """

    verdict: Verdict
    linear_share: float
    window_share: float


def judge(found: Mapping[Ablation, float], *, more_is_better: bool = False) -> Judged:
    """Returns the verdict on a hybrid.

    Args:
        found: A loss, or an accuracy, of every ablation.
        more_is_better: Whether it is an accuracy.
    """
    sign = -1.0 if more_is_better else 1.0
    losses = {kept: sign * value for kept, value in found.items()}
    whole = losses[Ablation.NONE] - losses[Ablation.BOTH]
    if whole <= 0:
        return Judged(Verdict.IDLE, 0.0, 0.0)
    linear, window = (
        (losses[kept] - losses[Ablation.BOTH]) / whole
        for kept in (Ablation.WINDOW, Ablation.LINEAR)
    )
    verdict = Verdict.HYBRID
    if linear < MATTERS:
        verdict = Verdict.WINDOW
    elif window < MATTERS:
        verdict = Verdict.NO_WINDOW
    return Judged(verdict, linear, window)
