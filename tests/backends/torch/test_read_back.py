"""Trained weights go back into the module."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError
from tests.backends.torch.models import (
    assert_close,
    assert_same_outputs,
    layer_inputs,
    layers,
    torch,
)

from regraft.backends.torch.executor import TorchRunner  # isort: skip  # needs torch


def _train(net: torch.nn.Module, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        x, mask = (torch.from_numpy(a) for a in layer_inputs(seed=step).values())
        optimizer.zero_grad()
        loss = (net(x, mask) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_trained_net_runs_in_onnx_runtime(tmp_path: Path) -> None:
    module = layers()
    regraft.apply(module, "canonicalize", check="off")
    net = regraft.to_torch(module).train()
    losses = _train(net, 20)
    assert losses[-1] < losses[0] / 2
    changed = regraft.read_back(module, net)
    assert set(changed) == set(net.state_dict())
    inputs = layer_inputs(4)
    got = OrtRunner(regraft.save(module, tmp_path / "trained.onnx"))(inputs)
    want = TorchRunner(net, module)(inputs)
    assert_close(got["out"], want["out"])
    assert_same_outputs(module, got, inputs)


def test_nothing_changes_without_training() -> None:
    module = layers()
    regraft.apply(module, "canonicalize", check="off")
    before = {name: module.weights[name] for name in module.weights}
    assert regraft.read_back(module, regraft.to_torch(module)) == []
    assert all(module.weights[name] is weight for name, weight in before.items())


def test_derived_weights_follow_the_tensor_that_changed() -> None:
    module = layers()
    regraft.apply(module, "canonicalize", check="off")
    derived = [n for n in module.weights if isinstance(module.weights[n], DerivedWeight)]
    assert derived
    net = regraft.to_torch(module)
    with torch.no_grad():
        net.head.weight.zero_()
    assert regraft.read_back(module, net) == ["head.weight"]
    name = next(name for name in derived if name.startswith("head"))
    assert isinstance(module.weights[name], DerivedWeight)
    assert not module.weights[name].numpy().any()


def test_wrapped_nets_and_state_dicts_are_read() -> None:
    module = layers()
    net = regraft.to_torch(module)
    state = {f"module.{name}": tensor + 1 for name, tensor in net.state_dict().items()}
    assert len(regraft.read_back(module, state)) == len(state)
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    assert len(regraft.read_back(module, compiled)) == len(state)


def test_net_of_another_module_is_refused_and_nothing_is_stored() -> None:
    module = layers()
    state = dict(regraft.to_torch(module).state_dict())
    state["head.bias"] = torch.zeros(3)
    del state["head.weight"]
    before = module.weights["head.bias"]
    with pytest.raises(InputError, match=r"(?s)`head.weight` is missing.*`head.bias` is \[3\]"):
        regraft.read_back(module, state)
    assert module.weights["head.bias"] is before


def test_half_precision_nets_are_read_in_the_type_of_the_module() -> None:
    module = layers()
    net = regraft.to_torch(module).half()
    regraft.read_back(module, net)
    array = module.weights["head.weight"].numpy()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, array.astype(np.float16))
