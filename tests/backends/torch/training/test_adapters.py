"""Adapters: equal at the start, folded exactly, patterns of zeros preserved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.recovery.task import Adapter, Lora, Spp
from tests.backends.torch.models import layer_inputs, layers, torch
from tests.backends.torch.training.models import data, disturbed, error, interrupted, task

from regraft.backends.torch import to_torch  # isort: skip  # needs torch
from regraft.backends.torch.training import TorchTrainer  # isort: skip
from regraft.backends.torch.training.adapters import attach, fold  # isort: skip

ADAPTERS = [Lora(rank=3, alpha=6.0), Spp(groups=4)]
MATRICES = ["net.layer.0.up.weight", "net.layer.0.down.weight", "net.layer.1.up.weight",
            "net.layer.1.down.weight", "head.weight"]  # fmt: skip


def _inputs() -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in layer_inputs().values()]


def _sparse(module: Module, share: float) -> Module:
    """Sets the smallest weights of every matrix to zero, in place."""
    for name in MATRICES:
        array = module.weights[name].numpy().copy()
        array[np.abs(array) < np.quantile(np.abs(array), share)] = 0
        module.weights.set(name, ArrayWeight(array))
    return module


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "spp"])
def test_training_starts_at_the_weights(adapter: Adapter) -> None:
    net = to_torch(layers())
    with torch.no_grad():
        want = net(*_inputs())
        attach(net, MATRICES, adapter, seed=0)
        assert torch.equal(net(*_inputs()), want)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "spp"])
def test_folded_equals_unfolded_bit_for_bit(adapter: Adapter) -> None:
    net = to_torch(layers())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    attach(net, MATRICES, adapter, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        want = net(*_inputs())
        fold(net, MATRICES)
        assert torch.equal(net(*_inputs()), want)
    assert net.state_dict().keys() == before.keys()
    changed = [name for name in before if not torch.equal(net.state_dict()[name], before[name])]
    assert set(changed) >= set(MATRICES)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "spp"])
def test_recovery_changes_the_matrices_of_linear_layers_alone(adapter: Adapter) -> None:
    module, teacher = disturbed(), layers()
    before = error(module, teacher)
    report = TorchTrainer().distill(module, [teacher], task(80, adapter), data())
    assert set(report.changed) == set(MATRICES)
    assert error(module, teacher) < before / 2


def test_lora_changes_a_matrix_by_no_more_than_its_rank() -> None:
    module = disturbed()
    TorchTrainer().distill(module, [layers()], task(20, Lora(rank=2)), data())
    for name in MATRICES:
        delta = module.weights[name].numpy() - disturbed().weights[name].numpy()
        sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
        # what rounding the sum to f32 leaves in the other directions
        assert sizes[2] < 1e-5 < sizes[1]


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_spp_preserves_the_pattern_of_zeros(share: float) -> None:
    module, teacher = _sparse(layers(), share), layers()
    patterns = {name: module.weights[name].numpy() == 0 for name in MATRICES}
    before = error(module, teacher)
    TorchTrainer().distill(module, [teacher], task(150, Spp(groups=4)), data())
    assert error(module, teacher) < 0.8 * before
    for name, pattern in patterns.items():
        assert pattern.mean() == pytest.approx(share, abs=0.02)
        np.testing.assert_array_equal(module.weights[name].numpy() == 0, pattern)


def test_lora_does_not() -> None:
    module = _sparse(layers(), 0.5)
    TorchTrainer().distill(module, [layers()], task(5, Lora(rank=2)), data())
    assert (module.weights["head.weight"].numpy() != 0).all()


def test_adapted_vectors_are_refused() -> None:
    run = replace(task(1, Lora()), trained=("head.bias",))
    with pytest.raises(UsageError, match=r"`head\.bias` has 1 axes, an adapter takes matrices"):
        TorchTrainer().distill(disturbed(), [layers()], run, data())


def test_interrupted_adapters_resume(tmp_path: Path) -> None:
    whole, module = disturbed(), disturbed()
    run = task(6, Lora(rank=2), checkpoint_every=2)
    TorchTrainer().distill(whole, [layers()], run, data())
    trainer = TorchTrainer(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.distill(module, [layers()], run, interrupted(3))
    trainer.distill(module, [layers()], run, data())
    for name in MATRICES:
        assert module.weights[name].numpy().tobytes() == whole.weights[name].numpy().tobytes()
