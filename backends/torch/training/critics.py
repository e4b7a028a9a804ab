"""Discriminators: nets that tell a student's outputs from its teachers', and are fooled meanwhile.

A reversed gradient trains both at once: the discriminator is made better at telling, the student at
not being told. Discriminators belong to the run and to its checkpoints, never to the module.

Source: Shen & Savvides, MEAL V2, 2020, eq. 4 (three layers, binary cross-entropy); Ganin &
Lempitsky, Unsupervised Domain Adaptation by Backpropagation, 2015 (reversed gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.passes.recovery.objective import Discriminator, Term


class Critic(nn.Module):
    """Softmax outputs `[..., C]` -> logit `[...]` of being a teacher's.

    Args:
        num_classes: `C`.
        hidden: Width of the two inner layers.
        generator: Draws the weights.
    """

    def __init__(self, num_classes: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [num_classes, hidden, hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                bound = layer.in_features**-0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns the logits."""
        x = F.softmax(outputs.float(), dim=-1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).squeeze(-1)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the cross-entropy per position; the student gets its gradient reversed."""
        own, theirs = self(Reversed.apply(student)), self(teacher)
        wrong = F.binary_cross_entropy_with_logits(own, torch.zeros_like(own), reduction="none")
        missed = F.binary_cross_entropy_with_logits(
            theirs, torch.ones_like(theirs), reduction="none"
        )
        return (wrong + missed) / 2


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is the negative one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Returns `x`."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Returns the gradient, negated."""
        return -grads[0]


def critics_of(terms: Sequence[Term], values: dict[str, Value], seed: int) -> dict[str, Critic]:
    """Returns the discriminators of the terms that have one, by the terms' numbers.

    Args:
        terms: The objective.
        values: The module's values, by the terms' numbers.
        seed: Draws their weights.

    Raises:
        UsageError: Where the number of classes is not known.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Critic] = {}
    for idx, term in enumerate(terms):
        if not isinstance(term.loss, Discriminator):
            continue
        size = (values[str(idx)].shape or (None,))[-1]
        if not isinstance(size, int):
            raise UsageError(
                f"term {idx}: a discriminator needs the number of classes, the last axis is {size}"
            )
        found[str(idx)] = Critic(size, term.loss.hidden, generator)
    return found
