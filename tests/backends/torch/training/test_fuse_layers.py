"""Layers fused into their neighbours: exact at the start, nearer than removal, folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.depth.fuse_layers import FuseLayers, folded, grafted
from regraft.passes.depth.stack import bypass, layers_of, without
from regraft.passes.protocol import Context
from tests.passes.depth.stacks import context, samples, stack

torch = pytest.importorskip("torch", reason="fusing trains with PyTorch")

from regraft.backends.torch.training import TorchTrainer  # noqa: E402

Array = np.ndarray[Any, Any]


def lost(module: Module, reference: Module) -> float:
    rng = np.random.default_rng(9)
    held_out = {"h0": rng.standard_normal((64, 8)).astype(np.float32)}
    got, want = (evaluate(each, held_out)["y"] for each in (module, reference))
    return float(np.square(got - want).sum() / np.square(want).sum())


def test_at_the_start_it_is_plain_removal() -> None:
    module = stack(5)
    plain = without(module, [2])
    layers = layers_of(module)
    grafts = grafted(module, layers, 2, group=1, rank=3, seed=0)
    assert len(grafts) == 4  # two matrices of either neighbour
    bypass(layers, [2])
    verify(module)
    sample = samples(1)[0]
    np.testing.assert_array_equal(evaluate(module, sample)["y"], evaluate(plain, sample)["y"])


def test_folded_equals_unfolded() -> None:
    module = stack(5)
    layers = layers_of(module)
    grafts = grafted(module, layers, 2, group=1, rank=3, seed=0)
    bypass(layers, [2])
    rng = np.random.default_rng(1)
    for graft in grafts:
        for name in graft.names:
            shape = module.weights[name].shape
            content = 0.1 * rng.standard_normal(shape)
            module.weights.set(name, ArrayWeight(content.astype(np.float32)))
    sample = samples(1)[0]
    want = evaluate(module, sample)["y"]
    folded(module, grafts)
    verify(module)
    assert sorted(module.weights) == sorted(without_names(stack(5), 2))
    got = evaluate(module, sample)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def without_names(module: Module, number: int) -> list[str]:
    return [name for name in module.weights if not name.startswith(f"{number}.")]


@pytest.mark.parametrize("number", [2, 4])
def test_training_brings_the_group_nearer_than_removal(number: int) -> None:
    reference, module = stack(5, scale=0.5), stack(5, scale=0.5)
    plain = without(reference, [number])
    ctx = context()
    ctx.trainer = TorchTrainer(progress=False)
    result = FuseLayers(layers=(number,), steps=200, rate=1e-2, rank=4).run(module, ctx)
    verify(module)
    assert result.stats["layers"] == 4
    assert result.stats[f"loss-last-{number}"] < 0.7 * result.stats[f"loss-first-{number}"]
    assert lost(module, reference) < lost(plain, reference)
    assert sorted(module.weights) == sorted(without_names(reference, number))


def test_a_count_takes_what_is_missed_least() -> None:
    module = stack(5)
    down = module.weights["3.down"].numpy() * np.float32(1e-3)
    module.weights.set("3.down", ArrayWeight(down))
    module.weights.set("3.bias", ArrayWeight(np.zeros(8, np.float32)))
    ctx = context()
    ctx.trainer = TorchTrainer(progress=False)
    result = FuseLayers(count=2, steps=10).run(module, ctx)
    assert result.decisions["layers"][0] == 3
    assert len(layers_of(module)) == 3


def test_what_training_needs_is_said() -> None:
    with pytest.raises(UsageError, match="it needs PyTorch"):
        FuseLayers(layers=(1,)).run(stack(3), Context())
    with pytest.raises(UsageError, match="give either `layers` or a `count`"):
        FuseLayers().run(stack(3), Context())
