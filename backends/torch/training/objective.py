"""The objective of a task as a function of a batch: nets of the module and its teachers, losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn

from regraft.backends.torch.training import losses
from regraft.backends.torch.training import routing_losses as routing
from regraft.backends.torch.training.critics import Critic
from regraft.ir.errors import InputError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.recovery.objective import (
    Balance,
    CrossEntropy,
    Discriminator,
    Kl,
    Loss,
    MarginBalance,
    Mse,
    Nkd,
    NormalizedMse,
    RouterZ,
    Term,
)


def student_values(module: Module, terms: Sequence[Term]) -> dict[str, Value]:
    """Returns the values of the module that the terms speak of, by the terms' numbers."""
    return {str(idx): _value(module, term.student) for idx, term in enumerate(terms)}


def teacher_values(teacher: Module, number: int, terms: Sequence[Term]) -> dict[str, Value]:
    """Returns the values of one teacher that the terms speak of, by the entries of the batch."""
    found = {}
    for idx, term in enumerate(terms):
        match term.teacher:
            case None:
                continue
            case str():
                found[teacher_entry(number, idx)] = _value(teacher, term.teacher)
            case values:
                if number >= len(values):
                    raise UsageError(f"term {idx} has values of {len(values)} teachers")
                found[teacher_entry(number, idx)] = values[number]
    return found


def _value(module: Module, place: str | Value) -> Value:
    if isinstance(place, Value):
        return place
    outputs = dict(zip(module.graph.output_names, module.graph.outputs, strict=True))
    if place not in outputs:
        raise UsageError(
            f"the module has no output `{place}`", hint=f"it has {', '.join(map(repr, outputs))}"
        )
    return outputs[place]


def teacher_entry(teacher: int, term: int) -> str:
    """Returns the entry of a batch that holds what a teacher has for a term."""
    return f"teacher {teacher} term {term}"


def objective_of(
    terms: Sequence[Term],
    num_teachers: int,
    critics: Mapping[str, Critic],
    batches_per_step: int = 1,
) -> Callable[[nn.Module, Mapping[str, Tensor]], Tensor]:
    """Returns the sum of the terms as a function of the student's net and a batch.

    The batch holds the teachers' values (`teacher_entry`).

    Args:
        terms: The summands.
        num_teachers: How many teachers there are.
        critics: Discriminators by the terms' numbers; the student's net trains them as well.
        batches_per_step: Batches of a step: what `Balance` counts globally.
    """
    counts = {
        str(idx): routing.StepCounts(batches_per_step)
        for idx, term in enumerate(terms)
        if isinstance(term.loss, Balance) and term.loss.scope == "global"
    }

    def total(net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        student = net(batch)
        parts = []
        for idx, term in enumerate(terms):
            has_teacher = term.teacher is not None
            targets = [batch[teacher_entry(t, idx)] for t in range(num_teachers) if has_teacher]
            part = loss_of(
                term.loss, student[str(idx)], targets, _entry(batch, term.label),
                _entry(batch, term.mask), critics.get(str(idx)), counts.get(str(idx)),
            )  # fmt: skip
            parts.append(term.weight * part)
        return torch.stack(parts).sum()

    return total


def loss_of(
    loss: Loss,
    student: Tensor,
    teachers: Sequence[Tensor],
    label: Tensor | None = None,
    mask: Tensor | None = None,
    critic: Critic | None = None,
    counts: routing.StepCounts | None = None,
) -> Tensor:
    """Returns one loss; several teachers are averaged, as features or as distributions."""
    match loss:
        case Mse():
            return losses.mse(student, losses.ensemble_features(teachers), mask)
        case NormalizedMse():
            return losses.normalized_mse(student, losses.ensemble_features(teachers), mask)
        case Kl(temperature):
            return losses.kl(student, losses.ensemble_logits(teachers), temperature, mask)
        case Nkd(gamma, temperature):
            logits = losses.ensemble_logits(teachers)
            return losses.nkd(student, logits, _needed(label), gamma, temperature, mask)
        case CrossEntropy(smoothing, ignored, stable):
            answers = _needed(label)
            return losses.cross_entropy(student, answers, smoothing, ignored, mask, stable)
        case Discriminator():
            if critic is None:
                raise AssertionError("terms with a discriminator come with one")
            each = critic.loss(student, losses.ensemble_logits(teachers))
            return losses.masked_mean(each, mask)
        case Balance(top_k):
            return routing.balance(student, top_k, mask, counts, loss.sizes)
        case RouterZ():
            return routing.router_z(student, mask)
        case MarginBalance():
            return routing.margin_balance(student, mask)
        case _:
            assert_never(loss)


def _needed(label: Tensor | None) -> Tensor:
    if label is None:
        raise AssertionError("terms check that they have a label")
    return label


def _entry(batch: Mapping[str, Tensor], name: str | None) -> Tensor | None:
    if name is None:
        return None
    if name not in batch:
        raise InputError(
            f"the batch has no `{name}`", hint=f"it has {', '.join(f'`{each}`' for each in batch)}"
        )
    return batch[name]
