"""Schedules and objectives: what they say, what they refuse."""

from __future__ import annotations

import math

import pytest

from regraft.ir.errors import UsageError
from regraft.passes.recovery.objective import CrossEntropy, Kl, Mse, Nkd, Term
from regraft.passes.recovery.task import Schedule, Task


def test_rate_warms_up_and_follows_half_a_cosine() -> None:
    schedule = Schedule(110, learning_rate=2.0, warmup_steps=10, final_ratio=0.1)
    assert [schedule.rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert schedule.rate(10) == 2.0
    assert schedule.rate(60) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert schedule.rate(35) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert schedule.rate(110) == pytest.approx(0.2)
    rates = [schedule.rate(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_problems_of_a_schedule_are_listed_together() -> None:
    with pytest.raises(UsageError, match=r"`steps` is 0.*`batches_per_step` is 0.*positive"):
        Schedule(0, learning_rate=0.0, batches_per_step=0)
    with pytest.raises(UsageError, match="`warmup_steps` is 5 of 4 steps"):
        Schedule(4, warmup_steps=5)


def test_terms_say_what_they_need() -> None:
    with pytest.raises(UsageError, match="term Nkd needs a `label`"):
        Term(Nkd(), "logits", "logits")
    with pytest.raises(UsageError, match="term Mse takes no `label`"):
        Term(Mse(), "out", "out", label="y")
    with pytest.raises(UsageError, match="term Kl needs a `teacher`"):
        Term(Kl(), "logits")
    with pytest.raises(UsageError, match="term CrossEntropy takes no `teacher`"):
        Term(CrossEntropy(), "logits", "logits", label="y")
    with pytest.raises(UsageError, match="a task without terms"):
        Task((), Schedule(1))
