"""Gradients without their part along the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_LEAST = 1e-30


def turn_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces g by g - (w.g / w.w) w, scaled to the length of g, for weights of two axes or more.

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, 2025, algorithm 1.
    """
    for weight in parameters:
        gradient = weight.grad
        if gradient is None or weight.ndim < 2:
            continue
        with torch.no_grad():
            along = (weight * gradient).sum() / (weight.square().sum() + _LEAST)
            across = gradient - along * weight
            across.mul_(gradient.norm() / (across.norm() + _LEAST))
            gradient.copy_(across)
