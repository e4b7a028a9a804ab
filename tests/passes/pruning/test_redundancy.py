"""`prune{target=redundant}`: dead and duplicated units are found, and go without a trace (E4)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.plan import parse_ranges
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.test_prune import WIDTH, run, stack

Array = np.ndarray[Any, Any]

IMAGES = """
%h1 = conv(%x, %w1, %b1) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]}
%n1 = batch_norm(%h1, %gain, %shift, %mean, %var)
%a1 = relu(%n1)
%h2 = conv(%a1, %w2, %b2) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1], groups = 40}
%a2 = relu(%h2)
%h3 = conv(%a2, %w3, %b3) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
%y = relu(%h3)
"""


def change(module: Module, name: str, axis: int, rows: Mapping[int, Any]) -> None:
    """Replaces rows of a weight: by another one (int), or by a number times itself (float)."""
    array = np.moveaxis(module.weights[name].numpy().copy(), axis, 0)
    for row, source in rows.items():
        array[row] = array[source] if isinstance(source, int) else array[row] * source
    module.weights.set(name, ArrayWeight(np.ascontiguousarray(np.moveaxis(array, 0, axis))))


def shift(module: Module, name: str, units: list[int], by: float) -> None:
    array = module.weights[name].numpy().copy()
    array[units] += np.float32(by)
    module.weights.set(name, ArrayWeight(array))


def convolutional() -> Module:
    """A convolution with a norm, a depthwise one, and a pointwise one, of 40 channels."""
    module = spelled(
        IMAGES, shape="B, 3, 9, 9",
        weights={
            "w1": "f32[40, 3, 3, 3]", "b1": "f32[40]", "gain": "f32[40]", "shift": "f32[40]",
            "mean": "f32[40]", "var": "f32[40]", "w2": "f32[40, 1, 3, 3]", "b2": "f32[40]",
            "w3": "f32[5, 40, 1, 1]", "b3": "f32[5]",
        },
    )  # fmt: skip
    module.weights.set("var", ArrayWeight(np.abs(module.weights["var"].numpy()) + np.float32(0.5)))
    return module


MADE = {"w1": 0, "b1": 0, "gain": 0, "shift": 0, "mean": 0, "var": 0, "w2": 0, "b2": 0}


def test_duplicates_of_channels_go_and_their_twins_take_over() -> None:
    module, rng = convolutional(), np.random.default_rng(0)
    order = [int(i) for i in rng.permutation(40)]
    planted = dict(zip(order[:15], order[15:30], strict=True))
    for name, axis in MADE.items():
        change(module, name, axis, planted)
    x = {"x": rng.standard_normal((2, 3, 9, 9)).astype(np.float32)}
    dense = evaluate(module, x)["y"]
    result = Prune("redundant").run(module, Context())
    assert result.stats["duplicate-units"] == 15
    assert module.weights["w3"].shape == (5, 25, 1, 1)
    again = evaluate(module, x)["y"]
    assert np.abs(again - dense).max() <= 1e-5 * np.abs(dense).max()


def test_duplicates_of_one_unit_all_go() -> None:
    module = stack(layers=1)
    for name, axis in (("up0", 1), ("bias0", 0)):
        change(module, name, axis, {3: 7, 20: 7, 50: 7})
    dense = run(module)
    result = Prune("redundant").run(module, Context())
    assert result.stats["duplicate-units"] == 3
    assert np.abs(run(module) - dense).max() <= 1e-5 * np.abs(dense).max()


def test_net2net_widening_is_undone() -> None:
    small = stack(width=WIDTH, layers=2)
    rng, wide = np.random.default_rng(1), stack(width=4 * WIDTH, layers=2)
    for name in small.weights:
        wide.weights.set(name, small.weights[name])
    for i in range(2):
        source = np.concatenate([np.arange(WIDTH), rng.integers(0, WIDTH, 3 * WIDTH)])
        count = np.bincount(source)
        order = rng.permutation(len(source))
        source = source[order]
        up, bias, down = (small.weights[f"{n}{i}"].numpy() for n in ("up", "bias", "down"))
        split = (down / count[:, None].astype(np.float32))[source]
        for name, array in (("up", up[:, source]), ("bias", bias[source]), ("down", split)):
            wide.weights.set(f"{name}{i}", ArrayWeight(np.ascontiguousarray(array)))
    dense = run(small)
    assert np.abs(run(wide) - dense).max() <= 1e-5 * np.abs(dense).max()
    result = Prune("redundant").run(wide, Context())
    assert result.stats["duplicate-units"] == 2 * 3 * WIDTH
    assert wide.weights["up1"].shape == (32, WIDTH)
    assert np.abs(run(wide) - dense).max() <= 1e-5 * np.abs(dense).max()


def test_units_that_a_norm_bounds_below_zero_are_dead() -> None:
    module = spelled(
        """
        %n = layer_norm(%x, %gain, %shift)
        %h = matmul(%n, %up)
        %b = add(%h, %bias)
        %a = relu(%b)
        %y = matmul(%a, %down)
        """,
        weights={"gain": "f32[16]", "shift": "f32[16]", "up": "f32[16, 50]", "bias": "f32[50]",
                 "down": "f32[50, 16]"},
    )  # fmt: skip
    # |gain * up column| * sqrt(16) is what the product reaches at most, beside its centre
    gain, shift_, up = (module.weights[n].numpy().astype(float) for n in ("gain", "shift", "up"))
    reach = 4 * np.linalg.norm(gain[:, None] * up, axis=0) + shift_ @ up
    bias = np.zeros(50, np.float32)
    bias[:20] = -reach[:20] - 0.01 * np.abs(reach[:20])
    bias[20:25] = -reach[20:25] * 0.9  # may be alive
    module.weights.set("bias", ArrayWeight(bias))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)}
    dense = evaluate(module, x)["y"]
    result = Prune("redundant").run(module, Context())
    (group,) = result.decisions["plan"]["groups"]
    assert set(parse_ranges(group["kept"][0])) == set(range(20, 50))
    assert result.stats["dead-units"] == 20
    assert np.abs(evaluate(module, x)["y"] - dense).max() <= 1e-6 * np.abs(dense).max()


def test_units_that_nothing_reads_are_dead() -> None:
    module = stack(layers=1)
    change(module, "down0", 0, dict.fromkeys(range(0, WIDTH, 2), 0.0))
    dense = run(module)
    result = Prune("redundant").run(module, Context())
    assert result.stats["dead-units"] == WIDTH // 2
    assert np.abs(run(module) - dense).max() <= 1e-12 * np.abs(dense).max()


def test_units_silent_on_samples_are_dead_only_when_samples_are_asked() -> None:
    x = np.random.default_rng(1).standard_normal((40, 20, 16)).astype(np.float32)
    samples = [{"x": x}]
    for criterion, expected in ((None, 0), ("activation", 30), ("energy", 30)):
        module = stack(layers=1)
        shift(module, "bias0", list(range(30)), -1e4)
        # the input is unbounded, so that nothing is proven
        ctx = Context(samples=samples, activations=OrtActivations())
        result = Prune("redundant", criterion=criterion).run(module, ctx)
        assert result.stats["dead-units"] == expected


def test_ninety_nine_percent_of_what_is_planted_is_found_in_noise() -> None:
    module, rng = stack(width=400), np.random.default_rng(0)
    for i in range(3):
        order = [int(k) for k in rng.permutation(400)]
        twins = dict(zip(order[:100], order[100:200], strict=True))
        for name, axis in ((f"up{i}", 1), (f"bias{i}", 0)):
            change(module, name, axis, twins)
        change(module, f"down{i}", 0, dict.fromkeys(order[200:250], 0.0))
    dense = run(module)
    result = Prune("redundant").run(module, Context())
    assert result.stats["duplicate-units"] + result.stats["dead-units"] >= 0.99 * 450
    assert np.abs(run(module) - dense).max() <= 1e-5 * np.abs(dense).max()


def test_units_that_differ_anywhere_on_the_way_are_no_duplicates() -> None:
    for name in MADE:
        module = convolutional()
        for other, axis in MADE.items():
            change(module, other, axis, {0: 1})
        # one element of one weight, by a hundredth of its largest
        array = module.weights[name].numpy().copy()
        array.reshape(40, -1)[0, 0] += np.float32(0.01) * np.abs(array).max()
        module.weights.set(name, ArrayWeight(array))
        assert Prune("redundant").run(module, Context()).stats["duplicate-units"] == 0


def test_units_that_a_norm_counts_stay() -> None:
    module = spelled(
        """
        %h = matmul(%x, %first)
        %n = rms_norm(%h, %gain)
        %y = matmul(%n, %last)
        """,
        weights={"first": "f32[16, 32]", "gain": "f32[32]", "last": "f32[32, 16]"},
    )
    change(module, "first", 1, {0: 1})
    change(module, "gain", 0, {0: 1})
    assert Coupling(module).groups
    result = Prune("redundant").run(module, Context())
    assert not result.changed


def test_hidden_units_of_a_recurrence_are_no_duplicates() -> None:
    module = spelled(
        """
        %t = transpose(%x) {perm = [1, 0, 2]}
        %h, %last_h, %last_c = lstm(%t, %w, %r) {hidden_size = 8, activations = ["Sigmoid",
          "Tanh", "Tanh"], alphas = [0.0, 0.0, 0.0], betas = [0.0, 0.0, 0.0]}
        %s = squeeze(%h) {axes = [1]}
        %y = matmul(%s, %down)
        """.replace("\n          ", " "),
        weights={"w": "f32[1, 32, 16]", "r": "f32[1, 32, 8]", "down": "f32[8, 4]"},
    )
    for name in ("w", "r"):
        change(module, name, 1, {0: 1, 8: 9, 16: 17, 24: 25})
    assert any(group.size == 8 for group in Coupling(module).groups)
    assert not Prune("redundant").run(module, Context()).changed


@pytest.mark.parametrize("check", ["redundant"])
def test_what_was_merged_is_replayed(check: str) -> None:
    def planted() -> Module:
        module = stack(layers=1)
        for name, axis in (("up0", 1), ("bias0", 0)):
            change(module, name, axis, {3: 7, 20: 7})
        return module

    first, second = planted(), planted()
    result = Prune(check).run(first, Context())
    Prune(check).run(second, Context(replay={"prune": result.decisions}))
    for name in first.weights:
        assert np.array_equal(first.weights[name].numpy(), second.weights[name].numpy())


def test_a_module_without_redundancy_stays_as_it_is() -> None:
    module = stack()
    before = str(module)
    result = Prune("redundant").run(module, Context())
    assert not result.changed
    assert str(module) == before
