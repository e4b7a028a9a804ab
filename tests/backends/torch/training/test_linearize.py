"""Transfer of attention into feature maps, weights beside adapters, windows that are dropped."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.passes.linearization.window_dropout import ENTRY, WindowDropout, droppable_windows
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import CrossEntropy, Term
from regraft.passes.recovery.task import Lora, Schedule, Task
from tests.passes.linearization.language_model import VOCABULARY, language_model

pytest.importorskip("torch", reason="training needs PyTorch")

from regraft.backends.torch.training import TorchTrainer  # isort: skip

RNG = np.random.default_rng(8)
BATCHES = [
    {"input_ids": (ids := RNG.integers(0, VOCABULARY, (4, 20))), "labels": np.roll(ids, -1, axis=1)}
    for _ in range(3)
]


@pytest.mark.parametrize("options", ["loss=output", "loss=weights", "loss=hybrid,window=4"])
def test_transfer_fits_the_maps_and_nothing_else(options: str) -> None:
    module = language_model()
    made = module.clone()
    (record,) = regraft.apply(
        made, f"linearize-attention{{steps=60,rate=0.05,{options}}}", check="off",
        training=FixedBatches(BATCHES),
    )  # fmt: skip
    assert record.stats["loss-last"] < 0.5 * record.stats["loss-first"]
    before = {name: module.weights[name] for name in module.weights}
    assert all(made.weights[name] is before[name] for name in made.weights if name in before)
    assert {name.split(".")[0] for name in made.weights if name not in before} == {"attention"}


def test_windows_are_dropped_where_the_batch_says_so_and_come_back() -> None:
    made = language_model()
    regraft.apply(made, "linearize-attention{window=4}", check="off")
    text, (batch, *_) = str(made), BATCHES
    plain = evaluate(made, {"input_ids": batch["input_ids"]})["logits"]
    linear = language_model()
    regraft.apply(linear, "linearize-attention", check="off")
    alone = evaluate(linear, {"input_ids": batch["input_ids"]})["logits"]
    with droppable_windows(made):
        for is_on, wanted in ((1.0, plain), (0.0, alone)):
            given = {"input_ids": batch["input_ids"], ENTRY: np.asarray(is_on, np.float32)}
            np.testing.assert_allclose(evaluate(made, given)["logits"], wanted, atol=1e-5)
    assert str(made) == text
    data = WindowDropout(FixedBatches(BATCHES), first=1.0, last=0.0, count=40).batches()
    drawn = [float(next(data)[ENTRY]) for _ in range(40)]
    assert drawn[0] == 0
    assert sum(drawn[20:]) > sum(drawn[:20])


def test_weights_beside_an_adapter_are_trained_themselves() -> None:
    made = language_model()
    regraft.apply(made, "linearize-attention", check="off")
    before = {name: made.weights[name].numpy().copy() for name in made.weights}
    maps = tuple(name for name in before if name.startswith("attention."))
    terms = (Term(CrossEntropy(), "logits", label="labels"),)
    task = Task(terms, Schedule(3, 0.01), ("q",), Lora(2, 4.0), maps)
    TorchTrainer(progress=False).distill(made, [], task, FixedBatches(BATCHES))
    after = {name: made.weights[name].numpy() for name in before}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"q", *maps}
    with pytest.raises(UsageError, match="beside"):
        Task(terms, Schedule(3), beside=maps)
