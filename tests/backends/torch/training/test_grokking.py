"""Modular addition without weight decay: softmax remembers and collapses, StableMax groks.

Source: Prieto et al., Grokking at the Edge of Numerical Stability, 2025, sections 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.backends.torch.models import torch

from regraft.backends.torch.training.losses import cross_entropy  # isort: skip
from regraft.backends.torch.training.orthogonal import turn_gradients  # isort: skip

PRIME, TRAINED, HIDDEN = 31, 0.6, 256
STEPS, RATE = 150, 3e-2


@dataclass(frozen=True, slots=True)
class Run:
    """What a training of a + b mod `PRIME` gave.

    Attributes:
        known: Share of the sums trained on that are right.
        unknown: Share of the others.
        collapsed: Share of the sums trained on whose loss by softmax is exactly 0 in f32: they
            have no gradient.
    """

    known: float
    unknown: float
    collapsed: float


def _run(seed: int, *, stable: bool, across: bool) -> Run:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    numbers = torch.arange(PRIME)
    a, b = (x.flatten() for x in torch.meshgrid(numbers, numbers, indexing="ij"))
    x = torch.cat([torch.nn.functional.one_hot(n, PRIME) for n in (a, b)], 1).float()
    y = (a + b) % PRIME
    order = torch.randperm(len(y))
    known, unknown = order.split([int(TRAINED * len(y)), len(y) - int(TRAINED * len(y))])
    net = torch.nn.Sequential(
        torch.nn.Linear(2 * PRIME, HIDDEN), torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, PRIME, bias=False),
    )  # fmt: skip
    torch.random.set_rng_state(state)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, betas=(0.9, 0.99))
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(net(x[known]), y[known], stable=stable).backward()
        if across:
            turn_gradients(net.parameters())
        optimizer.step()
    with torch.no_grad():
        logits = net(x)
        right = (logits.argmax(1) == y).float()
        losses = torch.nn.functional.cross_entropy(logits[known], y[known], reduction="none")
    zeros = float((losses == 0).float().mean())
    return Run(float(right[known].mean()), float(right[unknown].mean()), zeros)


@pytest.mark.parametrize("seed", [0, 1])
def test_stablemax_across_the_weights_groks_where_softmax_does_not(seed: int) -> None:
    plain = _run(seed, stable=False, across=False)
    assert plain.known == 1
    assert plain.unknown < 0.05
    assert plain.collapsed > 0.25
    across = _run(seed, stable=False, across=True)
    assert across.known == 1
    assert across.unknown < 0.05
    grokked = _run(seed, stable=True, across=True)
    assert grokked.known == 1
    assert grokked.unknown > 0.9
