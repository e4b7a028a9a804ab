"""Layers chosen by what the outputs lose, and the report of depth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.weights import ArrayWeight
from regraft.passes.depth.drop_layers import DropLayers
from regraft.passes.depth.influence import RemovalLoss, knapsack, removal_units
from regraft.passes.depth.report import depth_report
from regraft.passes.depth.stack import layers_of, num_parameters, removable
from tests.passes.depth.stacks import context, samples, stack


def test_the_knapsack_equals_brute_force_on_twelve_layers() -> None:
    module = stack(12, scale=0.1)
    layers = removable(layers_of(module))
    assert len(layers) == 12
    units = removal_units(RemovalLoss(module, OrtActivations(), samples(2)), list(layers))
    sizes = {n: num_parameters(layer) for n, layer in layers.items()}
    assert set(sizes.values()) == {8 * 16 * 2 + 8}
    for fraction in (0.2, 0.5, 0.8):
        found = knapsack(units, layers, fraction, 0)
        best = min(
            sum(float(units[n].losses[0]) for n in chosen)
            for count in range(13)
            for chosen in itertools.combinations(range(12), count)
            if sum(sizes[n] for n in chosen) >= fraction * sum(sizes.values())
        )
        assert found.loss == best
    # a count is the same with all sizes equal
    chosen = knapsack(units, layers, 0.0, 3).choice
    least = sorted(range(12), key=lambda n: float(units[n].losses[0]))[:3]
    assert sorted(np.flatnonzero(chosen == 0).tolist()) == sorted(least)


def test_a_rate_removes_at_least_so_many_parameters_and_reports_how_losses_add_up() -> None:
    module = stack(6, scale=0.1)
    before = sum(module.weights[name].numpy().size for name in module.weights)
    result = DropLayers(rate=0.4).run(module, context())
    gone = before - sum(module.weights[name].numpy().size for name in module.weights)
    assert gone >= 0.4 * 6 * (8 * 16 * 2 + 8)
    assert len(result.decisions["layers"]) == 3
    # small branches add up
    assert result.stats["additivity-r2"] > 0.8
    assert result.stats["additivity-rank-correlation"] > 0.8
    assert 0 < result.stats["joint-loss"] < 4 * result.stats["sum-of-losses"]


def test_a_count_by_outputs_sees_what_the_head_does_not_read() -> None:
    module = stack(4)
    # layer 1 turns the stream, but only in channels that nothing behind it reads
    down = np.zeros((16, 8), np.float32)
    down[:, 7] = 0.3
    module.weights.set("1.down", ArrayWeight(down))
    module.weights.set("1.bias", ArrayWeight(np.zeros(8, np.float32)))
    for name in ("2.up", "3.up", "head"):
        array = module.weights[name].numpy().copy()
        array[7] = 0
        module.weights.set(name, ArrayWeight(array))
    result = DropLayers(count=1, by="outputs").run(module, context())
    assert result.decisions["layers"] == [1]
    assert result.stats["joint-loss"] < 1e-12


def test_rates_out_of_range_and_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="is not from 0 to below 1"):
        regraft.apply(stack(3), "drop-layers{rate=1.5}", check="off", samples=samples())
    with pytest.raises(UsageError, match="4 of 3 layers"):
        regraft.apply(stack(3), "drop-layers{count=4}", check="off", samples=samples())
    module = stack(3)
    layers = removable(layers_of(module))
    units = removal_units(RemovalLoss(module, OrtActivations(), samples(1)), list(layers))
    with pytest.raises(TargetError):
        knapsack(units, layers, 1.5, 0)


def test_contributions_add_up_and_a_layer_that_does_nothing_scores_zero() -> None:
    module = stack(5)
    module.weights.set("2.down", ArrayWeight(np.zeros((16, 8), np.float32)))
    module.weights.set("2.bias", ArrayWeight(np.zeros(8, np.float32)))
    report = depth_report(module, OrtActivations(), samples())
    assert len(report.layers) == 5
    assert len(report.adds_up) == 1
    assert report.adds_up[0] <= 1e-5
    idle = report.layers[2]
    assert abs(idle.influence) < 1e-12  # 1 - cos of a vector with itself, in f64
    assert idle.branches[0].share < 1e-300  # over the least positive number
    assert idle.outputs_without == 0
    assert all(change == 0 for change in idle.later_without.values())
    for use in (report.layers[0], report.layers[1]):
        assert use.influence > 1e-3
        assert use.outputs_without is not None
        assert use.outputs_without > 1e-2
        assert set(use.later_without) == set(range(use.number + 1, 5))
        assert all(change > 1e-3 for n, change in use.later_without.items() if n != 2)
    assert report.describe()["layers"][0]["parameters"] == 264
