"""The core set of trained ONNX models in PyTorch: checked conversions, trained and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regraft
from benchmarks.models import CORE, ModelMissingError, RealModel, find, named, samples
from regraft.backends.onnx.runtime import OrtRunner
from tests.backends.torch.models import assert_close, torch

from regraft.backends.torch.executor import TorchRunner  # isort: skip  # needs torch


def _path_of(model: RealModel) -> Path:
    try:
        return find(model)
    except ModelMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("model", CORE, ids=lambda model: model.name)
def test_conversion_is_checked(model: RealModel, tmp_path: Path) -> None:
    given = samples(model)
    path = _path_of(model)
    result = regraft.convert(path, tmp_path / "out", target="torch", samples=given)
    assert result.check.verified == "module"
    assert result.check.ok
    assert {"model.py", "model.safetensors"} <= {f.name for f in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("model", CORE, ids=lambda model: model.name)
def test_module_as_loaded_gives_the_outputs_of_onnx_runtime(model: RealModel) -> None:
    path = _path_of(model)
    module = regraft.load(path)
    runner = TorchRunner(regraft.to_torch(module), module)
    reference, plain = OrtRunner(path), OrtRunner(path, optimize=False)
    for sample in samples(model):
        got, want, other = runner(sample), reference(sample), plain(sample)
        for name, expected in want.items():
            assert got[name].dtype == expected.dtype
            assert got[name].shape == expected.shape
            wide = expected.astype(np.float64)
            assert expected.size == 0 or np.abs(wide).max() > 0
            # the tolerance of an exact result: what the runtime's own rewrites change, four times
            noise = 4 * np.abs(other[name].astype(np.float64) - wide).max(initial=0)
            bound = max(1e-5 * np.abs(wide).max(initial=0), noise)
            np.testing.assert_allclose(got[name].astype(np.float64), wide, rtol=0, atol=bound)


def test_encoder_has_the_names_and_layouts_of_the_model_it_was_exported_from() -> None:
    module = regraft.load(_path_of(named("minilm-l3")))
    state = regraft.to_torch(module).state_dict()
    prefix = "model.0.auto_model."
    assert all(name.startswith(prefix) for name in state)
    assert state[f"{prefix}encoder.layer.2.intermediate.dense.weight"].shape == (1536, 384)
    assert len(state) == 5 + 3 * 16


def test_trained_encoder_runs_in_onnx_runtime(tmp_path: Path) -> None:
    model = named("minilm-l3")
    module = regraft.load(_path_of(model))
    regraft.apply(module, "canonicalize,fuse", check="off")
    net = regraft.to_torch(module).train()
    sample = samples(model)[1]
    inputs = [torch.from_numpy(sample[str(value.name)]) for value in module.graph.inputs]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = net(*inputs)[-1].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    assert len(regraft.read_back(module, net)) > 40
    got = OrtRunner(regraft.save(module, tmp_path / "trained.onnx"))(sample)
    for name, expected in TorchRunner(net, module)(sample).items():
        assert_close(got[name], expected, ulps=256)  # three layers of sums of 1536 terms
