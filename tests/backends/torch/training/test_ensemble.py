"""What several teachers teach, against labels, at equal steps (MEAL V2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.recovery.data import Examples
from regraft.passes.recovery.objective import CrossEntropy, Discriminator, Kl, Loss, Term
from regraft.passes.recovery.task import Schedule, Task, TrainingReport
from tests.backends.torch.models import torch

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch
from regraft.backends.torch.training.critics import Critic  # isort: skip

_NUM_CLASSES = 6


def _classifier(seed: int) -> Module:
    return parse_module(f"""
    module "classifier"
    symbol B
    weight @"up" : f32[8, 48] role=param = random({2 * seed})
    weight @"down" : f32[48, {_NUM_CLASSES}] role=param = random({2 * seed + 1})
    graph(%x : f32[B, 8]) {{
      %up = weight @"up"
      %down = weight @"down"
      %a = matmul(%x, %up)
      %r = relu(%a)
      %logits = matmul(%r, %down)
      return %logits
    }}
    """)


def _items(count: int, seed: int, wrong: float) -> list[dict[str, np.ndarray]]:
    """Returns points around class centres, some with the label of another class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((_NUM_CLASSES, 8))
    label = rng.integers(_NUM_CLASSES, size=count)
    x = (centres[label] + 0.8 * rng.standard_normal((count, 8))).astype(np.float32)
    shift = rng.integers(1, _NUM_CLASSES, size=count) * (rng.random(count) < wrong)
    given = (label + shift) % _NUM_CLASSES
    return [{"x": a, "label": np.asarray(b)} for a, b in zip(x, given, strict=True)]


def _accuracy(module: Module) -> float:
    items = _items(2000, 7, wrong=0.0)
    x, label = (np.stack([item[name] for item in items]) for name in ("x", "label"))
    return float((evaluate(module, {"x": x})["logits"].argmax(-1) == label).mean())


def _fit(
    module: Module, teachers: list[Module], losses: tuple[Loss, ...], data: Examples, steps: int,
    folder: Path | None = None,
) -> TrainingReport:  # fmt: skip
    terms = []
    for loss in losses:
        is_labelled = isinstance(loss, CrossEntropy)
        place, label = (None, "label") if is_labelled else ("logits", None)
        weight = 0.1 if isinstance(loss, Discriminator) else 1.0
        terms.append(Term(loss, "logits", place, label=label, weight=weight))
    task = Task(tuple(terms), Schedule(steps, learning_rate=1e-2, checkpoint_every=5))
    return TorchTrainer(folder=folder).distill(module, teachers, task, data)


def test_an_ensemble_regains_more_accuracy_than_labels_at_equal_steps() -> None:
    teachers = [_classifier(seed) for seed in (1, 2, 3)]
    large = Examples(_items(2048, 0, wrong=0.0), 64)
    for teacher in teachers:
        _fit(teacher, [], (CrossEntropy(),), large, 60)
    small = Examples(_items(96, 1, wrong=0.3), 32)  # as labels are: few, and not all right
    accuracy = []
    for losses in ((CrossEntropy(),), (Kl(),), (Kl(), Discriminator())):
        student = _classifier(4)
        _fit(student, [] if isinstance(losses[0], CrossEntropy) else teachers, losses, small, 60)
        accuracy.append(_accuracy(student))
    labels, ensemble, with_discriminator = accuracy
    # two standard errors of an accuracy measured on 2000 points
    assert ensemble > labels + 0.02
    assert with_discriminator > labels + 0.02


def test_a_discriminator_learns_to_tell_and_teaches_not_to_be_told() -> None:
    critic = Critic(_NUM_CLASSES, 16, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    student, teacher = (
        torch.from_numpy(rng.standard_normal((64, _NUM_CLASSES)).astype(np.float32) * size)
        for size in (0.2, 4.0)
    )
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = critic.loss(student, teacher).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2  # log 2 where nothing can be told
    free = student.clone().requires_grad_(True)
    for _ in range(20):
        (grad,) = torch.autograd.grad(critic.loss(free, teacher).sum(), free)
        free = (free - 0.5 * grad).detach().requires_grad_(True)
    # the student went where it is taken for a teacher, which makes the loss of the net larger
    assert float(critic.loss(free, teacher).mean().detach()) > 2 * losses[-1]
    np.testing.assert_array_equal(critic(student).detach() < 0, np.ones(64, bool))


def test_discriminators_are_no_part_of_the_module_and_resume(tmp_path: Path) -> None:
    teacher, data = _classifier(1), Examples(_items(64, 1, wrong=0.0), 16)
    losses = (Kl(), Discriminator(hidden=8))
    whole, again = _classifier(4), _classifier(4)
    want = _fit(whole, [teacher], losses, data, 12)
    assert set(want.changed) == {"up", "down"}
    got = _fit(again, [teacher], losses, data, 12, tmp_path)
    assert got == want
    third = _classifier(4)
    assert _fit(third, [teacher], losses, data, 12, tmp_path) == want  # read from the checkpoint
    for name in ("up", "down"):
        assert third.weights[name].numpy().tobytes() == whole.weights[name].numpy().tobytes()
