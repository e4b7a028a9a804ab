"""What training does not change is computed once, and changes nothing of the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regraft.ir.module import Module
from regraft.passes.recovery.data import Stream
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import NormalizedMse, Term
from regraft.passes.recovery.task import Lora, Task
from tests.backends.torch.models import layer_inputs, layers
from tests.backends.torch.training.models import FIT, disturbed, held_out, task

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch
from regraft.backends.torch.training import frozen  # isort: skip
from regraft.backends.torch.training.frozen import frozen_values  # isort: skip

BATCHES = [layer_inputs(4, seed=i) for i in range(3)]
SECOND = tuple(f"net.layer.1.{name}" for name in ("up.weight", "up.bias", "down.weight"))


def _bytes(module: Module) -> dict[str, bytes]:
    return {name: module.weights[name].numpy().tobytes() for name in module.weights}


def _value(module: Module, name: str):
    return next(v for node in module.graph for v in node.outputs if v.name == name)


def test_the_cut_lies_where_trained_weights_begin() -> None:
    module = layers()
    out = [module.graph.outputs[0]]
    # `hwt`, which is the same for every batch, is none
    assert [v.name for v in frozen_values(module, out, frozenset(SECOND))] == ["h0", "wide"]
    everything = frozen_values(module, out, frozenset(module.weights))
    assert [v.name for v in everything] == ["wide"]
    h0 = _value(module, "h0")
    # a value that training does not change at all is one of them
    assert frozen_values(module, [h0, *out], frozenset({"head.weight"})).count(h0) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("max_bytes", [1 << 30, 100, 0])
def test_kept_values_give_the_weights_of_computed_ones(
    precision: str, max_bytes: int, tmp_path: Path
) -> None:
    run = task(8, precision=precision, batches_per_step=2, evaluate_every=3, patience=9)
    run = replace(run, trained=SECOND, max_cache_bytes=max_bytes)
    data = FixedBatches(BATCHES)
    computed, kept = disturbed(), disturbed()
    # the same batches in the same order, which nobody can know to come back
    stream = Stream(_Replayed(data))
    want = TorchTrainer().distill(computed, [layers()], run, stream, held_out())
    got = TorchTrainer(folder=tmp_path).distill(kept, [layers()], run, data, held_out())
    assert got == want
    assert _bytes(kept) == _bytes(computed)
    assert set(got.changed) == set(SECOND)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


class _Replayed:
    def __init__(self, data: FixedBatches) -> None:
        self._data = data

    def __iter__(self):
        for number, batch in enumerate(self._data.batches()):
            if number == 100:
                return
            yield batch


def test_each_batch_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(frozen.FrozenValues):
        def close(self) -> None:
            made.append(self.num_computed)
            super().close()

    monkeypatch.setattr("regraft.backends.torch.training.trainer.FrozenValues", Counted)
    TorchTrainer().distill(disturbed(), [layers()], task(9), FixedBatches(BATCHES))
    TorchTrainer().distill(disturbed(), [layers()], task(9), Stream(BATCHES))
    assert made == [3, 9]


def test_values_inside_and_adapters_behind_the_cut() -> None:
    module, teacher = disturbed(), layers()
    inner = Term(NormalizedMse(), _value(module, "h0"), (_value(teacher, "h0"),))
    run = Task((FIT, inner), task(30).schedule, ("net.layer.1.up.weight",), Lora(rank=2))
    report = TorchTrainer().distill(module, [teacher], run, FixedBatches(BATCHES))
    assert report.changed == ("net.layer.1.up.weight",)
    assert report.losses[-1] < report.losses[0]
