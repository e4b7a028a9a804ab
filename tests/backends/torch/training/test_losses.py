"""Losses against the papers' equations, written out in numpy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.torch.models import torch

from regraft.backends.torch.training import losses  # isort: skip  # needs torch

ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Some dozen roundings of numbers near one, in f64."""


def _logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(2 * np.random.default_rng(seed).standard_normal(shape))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.7, 3.0)])
def test_nkd_is_the_equation_of_the_paper(gamma: float, temperature: float) -> None:
    student, teacher = _logits(0, 6, 10), _logits(1, 6, 10)
    label = np.array([0, 9, 3, 3, 5, 1])
    total = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), label, strict=True):
        rest = np.arange(10) != y
        ns, nt = (_softmax(x[rest] / temperature) for x in (s, t))
        total += -_softmax(t)[y] * np.log(_softmax(s)[y])
        total -= gamma * temperature**2 * (nt * np.log(ns)).sum()
    got = losses.nkd(student, teacher, torch.from_numpy(label), gamma, temperature)
    assert float(got) == pytest.approx(total / 6, rel=ROUNDING)


def test_nkd_of_the_reference_implementation() -> None:
    # the authors' code, as published: masks, reshapes and means
    student, teacher = _logits(2, 8, 7), _logits(3, 8, 7)
    label = torch.arange(8) % 7
    target = label.view(-1, 1)
    s, t = torch.log_softmax(student, 1), torch.softmax(teacher, 1)
    loss_t = -(t.gather(1, target) * s.gather(1, target)).mean()
    mask = torch.ones_like(student).scatter_(1, target, 0).bool()
    s = torch.log_softmax(student[mask].reshape(8, -1) / 2.0, 1)
    t = torch.softmax(teacher[mask].reshape(8, -1) / 2.0, 1)
    want = loss_t - 1.5 * 2.0**2 * (t * s).sum(1).mean()
    got = losses.nkd(student, teacher, label, 1.5, 2.0)
    assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_classes_other_than_the_target_sum_to_one_on_both_sides() -> None:
    label = torch.tensor([0, 4, 2])
    for seed in (4, 5):
        logits = _logits(seed, 3, 5)
        rest = losses.others(logits, label.unsqueeze(-1))
        assert rest.shape == (3, 4)
        for row, full, y in zip(rest, logits, label, strict=True):
            assert row.tolist() == [x for i, x in enumerate(full.tolist()) if i != y]
        torch.testing.assert_close(torch.softmax(rest, -1).sum(-1), torch.ones(3).double())


def test_nkd_is_least_where_the_student_is_the_teacher_among_the_others() -> None:
    teacher, label = _logits(6, 4, 9), torch.tensor([1, 2, 3, 4])
    student = teacher.clone().requires_grad_()
    losses.nkd(student, teacher, label).backward()
    rest = losses.others(student.grad, label.unsqueeze(-1))
    target_only = student.detach().clone().requires_grad_()
    losses.nkd(target_only, teacher, label, gamma=0.0).backward()
    torch.testing.assert_close(rest, losses.others(target_only.grad, label.unsqueeze(-1)))


def test_normalized_mse_is_relative() -> None:
    teacher, student = _logits(7, 3, 4, 8), _logits(8, 3, 4, 8)
    want = ((student - teacher) ** 2).sum() / (teacher**2).sum()
    got = losses.normalized_mse(student, teacher)
    assert float(got) == pytest.approx(float(want), rel=ROUNDING)
    scaled = losses.normalized_mse(100 * student, 100 * teacher)
    assert float(scaled) == pytest.approx(float(want), rel=ROUNDING)
    assert float(losses.normalized_mse(torch.zeros_like(teacher), teacher)) == pytest.approx(1.0)
    assert float(losses.normalized_mse(teacher, teacher)) == 0.0
    assert torch.isfinite(losses.normalized_mse(student, torch.zeros_like(teacher)))


def test_kl_is_zero_for_the_average_of_the_teachers_and_nowhere_else() -> None:
    teachers = [_logits(seed, 5, 6) for seed in (9, 10, 11)]
    average = torch.stack([torch.softmax(t, -1) for t in teachers]).mean(0)
    logits = losses.ensemble_logits(teachers)
    torch.testing.assert_close(torch.softmax(logits, -1), average)
    assert abs(float(losses.kl(average.log() + 3.0, logits))) < ROUNDING
    assert float(losses.kl(teachers[0], logits)) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_with_temperature(temperature: float) -> None:
    student, teacher = _logits(12, 5, 6), _logits(13, 5, 6)
    p, q = (_softmax(x.numpy() / temperature) for x in (teacher, student))
    want = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    got = losses.kl(student, teacher, temperature)
    assert float(got) == pytest.approx(want, rel=ROUNDING)


def test_masked_positions_count_for_nothing() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = mask.bool()
    student, teacher = _logits(14, 2, 3, 5), _logits(15, 2, 3, 5)
    label = torch.tensor([[1, 2, 3], [4, 0, 1]])
    pairs = [
        (losses.mse(student, teacher, mask), losses.mse(student[kept], teacher[kept])),
        (
            losses.normalized_mse(student, teacher, mask),
            losses.normalized_mse(student[kept], teacher[kept]),
        ),
        (losses.kl(student, teacher, mask=mask), losses.kl(student[kept], teacher[kept])),
        (
            losses.nkd(student, teacher, label, mask=mask),
            losses.nkd(student[kept], teacher[kept], label[kept]),
        ),
        (
            losses.cross_entropy(student, label, mask=mask),
            losses.cross_entropy(student[kept], label[kept]),
        ),
    ]
    for masked, selected in pairs:
        assert float(masked) == pytest.approx(float(selected), rel=ROUNDING)
        assert float(masked) > 0


def test_cross_entropy_leaves_out_ignored_labels() -> None:
    student, label = _logits(16, 2, 3, 5), torch.tensor([[1, -100, 3], [-100, 0, 1]])
    want = torch.nn.functional.cross_entropy(student.flatten(0, 1), label.flatten())
    assert float(losses.cross_entropy(student, label)) == pytest.approx(float(want), rel=ROUNDING)


def test_half_precision_is_measured_in_single() -> None:
    student, teacher = _logits(17, 4, 1000).bfloat16(), _logits(18, 4, 1000).bfloat16()
    for loss in (losses.mse, losses.normalized_mse, losses.kl):
        got = loss(student, teacher)
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(
            float(loss(student.double(), teacher.double())), rel=1e-5
        )
