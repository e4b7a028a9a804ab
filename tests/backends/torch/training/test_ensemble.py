"""What several teachers teach, against labels, at equal steps (MEAL V2)."""

from __future__ import annotations

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.recovery.data import Examples
from regraft.passes.recovery.objective import CrossEntropy, Kl, Loss, Term
from regraft.passes.recovery.task import Schedule, Task
from tests.backends.torch.models import torch  # noqa: F401  # skips without it

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch

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


def _fit(module: Module, teachers: list[Module], loss: Loss, data: Examples, steps: int) -> None:
    is_labelled = isinstance(loss, CrossEntropy)
    term = Term(
        loss, "logits", None if is_labelled else "logits", label="label" if is_labelled else None
    )
    task = Task((term,), Schedule(steps, learning_rate=1e-2))
    TorchTrainer().distill(module, teachers, task, data)


def test_an_ensemble_regains_more_accuracy_than_labels_at_equal_steps() -> None:
    teachers = [_classifier(seed) for seed in (1, 2, 3)]
    large = Examples(_items(2048, 0, wrong=0.0), 64)
    for teacher in teachers:
        _fit(teacher, [], CrossEntropy(), large, 60)
    small = Examples(_items(96, 1, wrong=0.3), 32)  # as labels are: few, and not all right
    accuracy = {}
    for loss in (CrossEntropy(), Kl()):
        student = _classifier(4)
        _fit(student, [] if isinstance(loss, CrossEntropy) else teachers, loss, small, 60)
        accuracy[type(loss)] = _accuracy(student)
    # two standard errors of an accuracy measured on 2000 points
    assert accuracy[Kl] > accuracy[CrossEntropy] + 0.02
