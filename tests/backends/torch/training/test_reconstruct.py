"""Blocks fitted one by one to the teacher's values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.objective import NormalizedMse
from regraft.passes.recovery.task import Block, Lora, Reconstruction, Schedule
from tests.backends.torch.models import assert_close, layer_inputs, layers
from tests.backends.torch.training.models import disturbed, error

from regraft.backends.torch.training import TorchTrainer  # isort: skip  # needs torch
from regraft.backends.torch.training.hidden_states import HiddenStates  # isort: skip

SCHEDULE = Schedule(60, learning_rate=1e-2)


def _value(module: Module, name: str) -> Value:
    inputs = [value for value in module.graph.inputs if value.name == name]
    made = (v for node in module.graph for v in node.outputs if v.name == name)
    return inputs[0] if inputs else next(made)


def _blocks(module: Module, teacher: Module) -> tuple[Block, ...]:
    pairs = [("x", "h0"), ("h0", "h1"), ("h1", "logits")]
    return tuple(
        Block(
            ((_value(module, start), _value(teacher, start)),),
            _value(module, end),
            _value(teacher, end),
        )
        for start, end in pairs
    )


def _samples() -> list[Batch]:
    return [layer_inputs(4, seed=i) for i in range(6)]


def test_blocks_bring_a_disturbed_module_back() -> None:
    module, teacher = disturbed(), layers()
    before = error(module, teacher)
    plan = Reconstruction(_blocks(module, teacher), SCHEDULE, NormalizedMse())
    reports = TorchTrainer().reconstruct(module, teacher, plan, _samples())
    assert [set(report.changed) for report in reports] == [
        {"net.layer.0.up.weight", "net.layer.0.up.bias", "net.layer.0.down.weight"},
        {"net.layer.1.up.weight", "net.layer.1.up.bias", "net.layer.1.down.weight"},
        {"head.weight", "head.bias"},
    ]
    assert all(report.losses[-1] < report.losses[0] / 5 for report in reports)
    assert error(module, teacher) < before / 5


def test_teacher_forced_blocks_do_not_depend_on_each_other() -> None:
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        module, teacher = disturbed(), layers()
        blocks = _blocks(module, teacher)
        plan = Reconstruction(tuple(blocks[i] for i in order), replace(SCHEDULE, steps=5))
        TorchTrainer().reconstruct(module, teacher, plan, _samples())
        results.append({name: module.weights[name].numpy().tobytes() for name in module.weights})
    assert results[0] == results[1]


def test_values_in_files_give_the_same_weights(tmp_path: Path) -> None:
    results = []
    for max_bytes in (0, 1 << 20):
        module, teacher = disturbed(), layers()
        plan = Reconstruction(
            _blocks(module, teacher), replace(SCHEDULE, steps=5), max_cache_bytes=max_bytes
        )
        TorchTrainer(folder=tmp_path / str(max_bytes)).reconstruct(
            module, teacher, plan, _samples()
        )
        results.append({name: module.weights[name].numpy().tobytes() for name in module.weights})
        left = sorted(path.name for path in (tmp_path / str(max_bytes)).iterdir())
        assert left == ["block_0", "block_1", "block_2"]
    assert results[0] == results[1]


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_hidden_states_are_the_values_of_the_evaluator(max_bytes: int, tmp_path: Path) -> None:
    teacher, samples = layers(), _samples()
    h0, h1 = _value(teacher, "h0"), _value(teacher, "h1")
    with HiddenStates(teacher, samples, max_bytes, tmp_path, "cpu") as states:
        states.compute([h0])
        held = states.num_bytes + states.num_spilled_bytes
        assert held == sum(sample["x"].nbytes for sample in samples)
        assert (states.num_bytes == 0) == (max_bytes == 0)
        states.keep({h0})
        states.compute([h1])
        states.keep({h1})
        batches = list(states.batches({"h": h1, "again": _value(teacher, "x")}))
        assert len(list(tmp_path.rglob("*.npy"))) == (6 if max_bytes == 0 else 0)
    assert list(tmp_path.iterdir()) == []
    for batch, sample in zip(batches, samples, strict=True):
        seen: dict[Value, np.ndarray] = {}
        evaluate(teacher, sample, observe=seen.__setitem__)
        assert_close(batch["h"], seen[h1])
        np.testing.assert_array_equal(batch["again"], sample["x"])


def test_weights_that_other_parts_read_stay() -> None:
    module, teacher = disturbed(), layers()
    blocks = _blocks(module, teacher)[:1]
    # the second layer reads the first one's weight from now on
    first, second = (_value(module, name) for name in ("u0", "u1"))
    second.replace_all_uses_with(first)
    plan = Reconstruction(blocks, SCHEDULE)
    (report,) = TorchTrainer().reconstruct(module, teacher, plan, _samples())
    assert set(report.changed) == {"net.layer.0.up.bias", "net.layer.0.down.weight"}


def test_adapters_in_blocks() -> None:
    module, teacher = disturbed(), layers()
    plan = Reconstruction(_blocks(module, teacher), SCHEDULE, adapter=Lora(rank=4))
    reports = TorchTrainer().reconstruct(module, teacher, plan, _samples())
    assert {name for report in reports for name in report.changed} == {
        name for name in module.weights if not name.endswith("bias")
    }
    assert all(report.losses[-1] < report.losses[0] for report in reports)


def test_finished_blocks_are_read_from_their_checkpoints(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, steps=6)
    whole, module, teacher = disturbed(), disturbed(), layers()
    trainer = TorchTrainer(folder=tmp_path)
    blocks = _blocks(whole, teacher)
    trainer.reconstruct(whole, teacher, Reconstruction(blocks, schedule), _samples())
    blocks = _blocks(module, teacher)
    trainer.reconstruct(module, teacher, Reconstruction(blocks, schedule), _samples())
    for name in module.weights:
        np.testing.assert_array_equal(module.weights[name].numpy(), whole.weights[name].numpy())
