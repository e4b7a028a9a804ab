"""Gradients across the weights: nothing along them, the length they had, and the schedule's use."""

from __future__ import annotations

import pytest

from tests.backends.torch.models import torch

from regraft.backends.torch.training.orthogonal import turn_gradients  # isort: skip
from regraft.backends.torch.training.trainer import TorchTrainer  # isort: skip
from tests.backends.torch.training.models import data, disturbed, error, layers, task  # isort: skip


def test_gradients_keep_their_length_and_leave_the_weight() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (weight.square().sum() + weight[0].sum()).backward()
    assert weight.grad is not None
    before = float(weight.grad.norm())
    assert abs(float((weight.detach() * weight.grad).sum())) > 1
    turn_gradients([weight])
    assert float(weight.grad.norm()) == pytest.approx(before, rel=1e-5)
    assert abs(float((weight.detach() * weight.grad).sum())) < 1e-4 * before * float(
        weight.detach().norm()
    )


def test_biases_are_left_alone() -> None:
    bias = torch.ones(3, requires_grad=True)
    (2 * bias).sum().backward()
    turn_gradients([bias])
    assert bias.grad is not None
    assert bias.grad.tolist() == [2, 2, 2]


def test_the_schedule_turns_gradients() -> None:
    errors, results = [], []
    for orthogonal in (False, True):
        module = disturbed()
        before = error(module, layers())
        TorchTrainer().distill(module, [layers()], task(30, orthogonal=orthogonal), data())
        errors.append(error(module, layers()) / before)
        results.append([module.weights[name].numpy().tobytes() for name in module.weights])
    assert results[0] != results[1]
    assert max(errors) < 0.8
