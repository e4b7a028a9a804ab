"""End-to-end distillation: what is learned, what is stored, how a run ends and resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import InputError, TargetError, UsageError
from regraft.ir.module import Module
from regraft.passes.recovery.data import Batch, Examples, Stream
from regraft.passes.recovery.objective import CrossEntropy, Kl, Mse, NormalizedMse, Term
from regraft.passes.recovery.task import Schedule, Task
from tests.backends.torch.models import layers, torch
from tests.backends.torch.training.models import (
    data,
    disturbed,
    error,
    held_out,
    interrupted,
    task,
)

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch
from regraft.backends.torch.training.loop import CHECKPOINT  # isort: skip


def _bytes(module: Module) -> dict[str, bytes]:
    return {name: module.weights[name].numpy().tobytes() for name in module.weights}


def test_distillation_brings_a_disturbed_module_back() -> None:
    module, teacher = disturbed(), layers()
    before = error(module, teacher)
    report = TorchTrainer().distill(module, [teacher], task(150), data())
    assert report.steps == len(report.losses) == 150
    assert report.stopped == "steps"
    assert set(report.changed) == set(module.weights)
    assert error(module, teacher) < before / 20


def test_teachers_stay_as_they_are() -> None:
    module, teacher = disturbed(), layers()
    want = _bytes(teacher)
    TorchTrainer().distill(module, [teacher], task(3), data())
    assert _bytes(teacher) == want


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    results = []
    for seed in (0, 0, 1):
        module = disturbed()
        examples = replace(data(), seed=seed)
        TorchTrainer().distill(module, [layers()], task(5), examples)
        results.append(_bytes(module))
    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_run_resumes_to_bit_identical_weights(tmp_path: Path, precision: str) -> None:
    run = task(12, checkpoint_every=4, batches_per_step=2, warmup_steps=3, precision=precision)
    whole = disturbed()
    wanted = TorchTrainer().distill(whole, [layers()], run, data())

    module = disturbed()
    trainer = TorchTrainer(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.distill(module, [layers()], run, interrupted(2 * 7))  # in the eighth step
    assert _bytes(module) == _bytes(disturbed())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    report = trainer.distill(module, [layers()], run, data())
    assert _bytes(module) == _bytes(whole)
    assert report == wanted


def test_finished_run_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    first, second = disturbed(), disturbed()
    trainer = TorchTrainer(folder=tmp_path)
    want = trainer.distill(first, [layers()], task(4), data())
    got = trainer.distill(second, [layers()], task(4), data())
    assert got == want
    assert _bytes(first) == _bytes(second)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = TorchTrainer(folder=tmp_path)
    trainer.distill(disturbed(), [layers()], task(2), data())
    with pytest.raises(UsageError, match=r"`learning_rate` was 0.01, is 0.02"):
        trainer.distill(disturbed(), [layers()], task(2, learning_rate=0.02), data())
    with pytest.raises(UsageError, match=r"another run: `data` was"):
        trainer.distill(disturbed(), [layers()], task(2), data(seed=4))


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    trainer = TorchTrainer(folder=tmp_path)
    with pytest.raises(InputError, match="is no checkpoint of a training run"):
        trainer.distill(disturbed(), [layers()], task(2), data())


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> object:
            return (Path.touch, (ran,))

    torch.save({"version": 1, "weights": Evil()}, tmp_path / CHECKPOINT)
    trainer = TorchTrainer(folder=tmp_path)
    with pytest.raises(InputError, match="is no checkpoint"):
        trainer.distill(disturbed(), [layers()], task(2), data())
    assert not ran.exists()


def test_early_stop_keeps_the_best_weights() -> None:
    module, teacher = disturbed(0.02), layers()
    run = task(200, learning_rate=0.3, evaluate_every=2, patience=3)
    report = TorchTrainer().distill(module, [teacher], run, data(), held_out())
    assert report.stopped == "patience"
    assert report.steps < 200
    best = min(loss for _, loss in report.held_out)
    assert [loss for _, loss in report.held_out].index(best) == len(report.held_out) - 4
    assert error(module, teacher) == pytest.approx(best, rel=1e-4)


def test_batches_of_a_step_count_like_one_large_batch() -> None:
    results = []
    for batch_size, per_step in ((8, 1), (2, 4)):
        module = disturbed()
        examples = Examples(data().items, batch_size, seed=None)
        run = task(3, batches_per_step=per_step, max_grad_norm=None)
        TorchTrainer().distill(module, [layers()], run, examples)
        results.append(module)
    for name in results[0].weights:
        a, b = (module.weights[name].numpy() for module in results)
        # Adam divides by the root of the second moment: noise of small gradients is amplified
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
        assert not np.array_equal(a, disturbed().weights[name].numpy())


def test_only_named_weights_are_trained() -> None:
    module = disturbed()
    run = replace(task(3), trained=("head.weight",))
    report = TorchTrainer().distill(module, [layers()], run, data())
    assert report.changed == ("head.weight",)
    with pytest.raises(UsageError, match=r"`head.wait` is no float parameter"):
        TorchTrainer().distill(module, [layers()], replace(run, trained=("head.wait",)), data())


def test_values_inside_are_fitted_and_weights_behind_them_stay() -> None:
    module, teacher = disturbed(), layers()
    own, theirs = (
        next(v.output for v in m.graph if v.output.name == "h0") for m in (module, teacher)
    )
    term = Term(NormalizedMse(), own, (theirs,))
    report = TorchTrainer().distill(
        module, [teacher], Task((term,), Schedule(60, learning_rate=1e-2)), data()
    )
    assert report.losses[-1] < report.losses[0] / 5
    assert set(report.changed) == {
        f"net.layer.0.{n}" for n in ("up.weight", "up.bias", "down.weight")
    }


def test_labels_teachers_and_masks_together() -> None:
    module = disturbed()

    class Labelled(Examples):
        def batches(self, first: int = 0):
            for batch in super().batches(first):
                rows = batch["x"].shape[0] * batch["x"].shape[1]
                label = np.arange(rows * 2).reshape(rows, 2) % 4
                yield {**batch, "label": label, "counts": (label != 3)}

    terms = (
        Term(CrossEntropy(0.1), "out", label="label", weight=0.1),
        Term(Kl(2.0), "out", "out", mask="counts"),
    )
    report = TorchTrainer().distill(
        module, [layers(), disturbed(0.1, 5)], Task(terms, Schedule(30, learning_rate=1e-2)),
        Labelled(data().items, 4),
    )  # fmt: skip
    assert report.losses[-1] < report.losses[0]


def test_streams_of_batches_and_their_end() -> None:
    module = disturbed()
    batches: list[Batch] = [dict(batch) for batch in held_out(3)]
    report = TorchTrainer().distill(module, [layers()], task(7), Stream(batches))
    assert report.steps == 7
    with pytest.raises(InputError, match="an iterator can be read once"):
        Stream(iter(batches))
    with pytest.raises(InputError, match="no batches"):
        next(Stream([]).batches())


def test_missing_entries_are_named() -> None:
    batch = {"x": held_out(1)[0]["x"]}
    with pytest.raises(InputError, match="the batch has no `mask`"):
        TorchTrainer().distill(disturbed(), [layers()], task(1), Stream([batch]))
    bad = Task((Term(Mse(), "o", "out"),), Schedule(1))
    with pytest.raises(UsageError, match="no output `o`"):
        TorchTrainer().distill(disturbed(), [layers()], bad, data())


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    batch = {name: array * np.float32("nan") for name, array in held_out(1)[0].items()}
    module = disturbed()
    with pytest.raises(TargetError, match="the loss is nan at step 1"):
        TorchTrainer().distill(module, [layers()], task(3), Stream([batch]))
    assert _bytes(module) == _bytes(disturbed())


def test_random_state_of_the_caller_stays() -> None:
    before = torch.get_rng_state()
    TorchTrainer().distill(disturbed(), [layers()], task(1), data())
    assert torch.equal(torch.get_rng_state(), before)
