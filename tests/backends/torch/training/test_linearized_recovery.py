"""What linearizing a trained model regains: three variants on a model that is trained here.

One layer tells whether the token that follows the current one in the alphabet was seen before: it
has to find one key among many. `python -m benchmarks.linearize` has the same on language models.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import regraft
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.module import Module
from regraft.passes.linearization.audit import Ablation, ablated, layer_figures
from regraft.passes.linearization.verdict import Verdict, judge
from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import CrossEntropy, Term
from regraft.passes.recovery.task import Lora, Schedule, Task
from tests.passes.linearization.language_model import VOCABULARY, language_model

pytest.importorskip("torch", reason="training needs PyTorch")

from regraft.backends.torch.training import TorchTrainer  # isort: skip

LENGTH, ROWS, WINDOW = 20, 16, 8
MAPS, ADAPTERS = 60, 60
"""Updates of the two stages."""
TRANSFER = f"loss=mixed,rate=0.06,steps={MAPS}"


def _batches(seed: int, count: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made: list[Batch] = []
    for _ in range(count):
        ids = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
        follows = (ids[:, :, None] + 1) % VOCABULARY == ids[:, None, :]
        seen = (follows & np.tri(LENGTH, dtype=bool)).any(-1)
        made.append({"input_ids": ids, "labels": seen.astype(np.int64)})
    return made


TEXT, UNSEEN = FixedBatches(_batches(8, 24)), _batches(9, 4)


def _fit(module: Module, steps: int, rate: float, lora: Lora | None = None) -> None:
    maps = tuple(name for name in module.weights if name.startswith("attention."))
    terms = (Term(CrossEntropy(), "logits", label="labels"),)
    task = Task(terms, Schedule(steps, rate), ("q", "k", "v"), lora, maps if lora else ())
    TorchTrainer(progress=False).distill(module, [], task, TEXT)


@cache
def _teacher() -> Module:
    module = language_model()
    _fit(module, 400, 0.02)
    return module


def _loss(module: Module) -> float:
    run, total = OrtRunner(to_proto(module)), 0.0
    for batch in UNSEEN:
        logits = np.asarray(run({"input_ids": batch["input_ids"]})["logits"], np.float64)
        logs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        total -= np.take_along_axis(logs, batch["labels"][..., None], -1).mean()
    return total / len(UNSEEN)


def _linear(options: str) -> Module:
    made = _teacher().clone()
    regraft.apply(made, f"linearize-attention{{{options}}}", check="off", training=TEXT)
    return made


def _regained(swapped: Module, made: Module) -> float:
    swap = _loss(swapped)
    return (swap - _loss(made)) / (swap - _loss(_teacher()))


def test_transfer_and_adapters_regain_what_the_swap_lost() -> None:
    swapped, made = _linear("method=hedgehog"), _linear(TRANSFER)
    assert _loss(_teacher()) < 0.2
    assert _loss(swapped) > 1.0
    assert _regained(swapped, made) >= 0.50
    before, after = (
        np.mean(layer_figures(_teacher(), each, UNSEEN[:1], lambda m: OrtRunner(to_proto(m)))[0].kl)
        for each in (swapped, made)
    )
    assert 1 - after / before >= 0.45
    _fit(made, ADAPTERS, 5e-3, Lora(4, 8.0))
    assert _regained(swapped, made) >= 0.72


def test_transfer_is_worth_more_than_as_many_steps_of_adapters() -> None:
    alone, made = _linear("method=hedgehog"), _linear(TRANSFER)
    _fit(alone, MAPS + ADAPTERS, 5e-3, Lora(4, 8.0))
    _fit(made, ADAPTERS, 5e-3, Lora(4, 8.0))
    assert _loss(alone) - _loss(made) >= 0.03


def test_a_hybrid_regains_more_and_needs_its_linear_branch() -> None:
    """What is asked for lies anywhere: a window of 8 of 20 tokens is not enough."""
    swapped, made = _linear(f"window={WINDOW}"), _linear(f"window={WINDOW},{TRANSFER}")
    _fit(made, ADAPTERS, 5e-3, Lora(4, 8.0))
    assert _regained(swapped, made) >= 0.9
    judged = judge({each: _loss(ablated(made, each)) for each in Ablation})
    assert judged.verdict is Verdict.HYBRID
    assert judged.linear_share > 0.2


@pytest.mark.parametrize(
    ("options", "loss"),
    [("method=hedgehog", "output"), (f"window={WINDOW},merge=lolcats", "hybrid")],
    ids=["linear", "lolcats"],
)
def test_the_error_of_results_falls_tenfold(options: str, loss: str) -> None:
    """Stage 1 of LoLCATs on a model that attends sharply, error of attention's results."""
    swapped, made = _linear(options), _linear(f"{options},loss={loss},rate=0.06,steps=120")
    before, after = (
        layer_figures(_teacher(), each, UNSEEN[:1], lambda m: OrtRunner(to_proto(m)))[0].error
        for each in (swapped, made)
    )
    assert after <= before / 10
