"""Repair of pruned modules: layers, biases, statistics, streams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.constants import constant_of
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops.norm import batch_norm
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.slicing import slice_module
from regraft.passes.reconstruction.batch_norms import refresh
from regraft.passes.reconstruction.counterpart import Counterpart
from regraft.passes.reconstruction.frontier import Frontier
from regraft.passes.reconstruction.sites import sites
from regraft.passes.reconstruction.walk import Method, Repaired, repair_layers
from tests.passes.analysis.spelled import spelled
from tests.passes.pruning.test_prune import WIDTH, stack

Array = np.ndarray[Any, Any]

F32 = 1e-5
"""Some hundred products of f32 numbers near one: 2⁻²³ times the root of a few thousand."""


def samples(shape: tuple[int, ...] = (2, 3, 16), count: int = 24, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def cut(
    module: Module, choice: Mapping[str, Array], given: list[Any], method: Method
) -> tuple[Repaired, Counterpart]:
    """Cuts groups, by name of a weight that they stand in and its axis, and repairs the rest."""
    coupling = Coupling(module)
    chosen: dict[Group, Array] = {}
    for place, kept in choice.items():
        name, axis = place.split(".")
        group = next(g for g in coupling.groups if (name, int(axis)) in g.weights)
        chosen[group] = kept
    before = Counterpart.before(coupling, chosen)
    slice_module(coupling, chosen)
    drop_dead_code(module)
    done = repair_layers(module, before, OrtActivations(), given, method, "attention_mask")
    return done, before


def outputs(module: Module, given: list[Any]) -> Array:
    return np.concatenate([evaluate(module, each, oracle=True)["y"] for each in given])


def error(dense: Module, module: Module, given: list[Any]) -> float:
    a, b = outputs(dense, given), outputs(module, given)
    return float(np.square(a - b).sum() / np.square(a).sum())


LAYERS = {
    "matmul": ("%y = matmul(%x, %w)", "B, S, 16", {"w": "f32[16, 4]"}, (2, 3, 16)),
    "gemm": ("%y = gemm(%x, %w, %b) {trans_b = true}", "B, 16",
             {"w": "f32[4, 16]", "b": "f32[4]"}, (5, 16)),
    "conv": ("%y = conv(%x, %w, %b) {strides = [2, 1], dilations = [1, 2], pads = [1, 2, 1, 2]}",
             "B, 6, H, W", {"w": "f32[4, 6, 3, 3]", "b": "f32[4]"}, (2, 6, 7, 9)),
    "groups": (("%y = conv(%x, %w) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 1, 1], "
                "groups = 3}"), "B, 6, H, W", {"w": "f32[9, 2, 2, 2]"}, (2, 6, 5, 4)),
    "conv_transpose": (("%y = conv_transpose(%x, %w, %b) {strides = [2, 3], dilations = [1, 1], "
                        "pads = [0, 0, 0, 0], output_padding = [0, 0]}"), "B, 6, H, W",
                       {"w": "f32[6, 4, 2, 3]", "b": "f32[4]"}, (2, 6, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_matrix_are_the_rows_of_the_result(kind: str) -> None:
    line, shape, weights, sizes = LAYERS[kind]
    module = spelled(line, shape, weights=weights)
    (site,) = sites(module)
    (given,) = samples(sizes, 1)
    y = evaluate(module, given, oracle=True)["y"]
    rows = np.random.default_rng(1).permutation(site.form.num_rows(y))[:7]
    x = site.form.inputs(given["x"].astype(np.float64), y, rows)
    bias = np.zeros(1)
    if site.bias_at is not None:
        node, idx = site.bias_at
        found = constant_of(node.inputs[idx], 1 << 20)
        assert found is not None
        columns = y.shape[1] if kind != "conv_transpose" else 4
        bias = np.repeat(found.reshape(-1), 6 if kind == "conv_transpose" else 1)
        assert columns == 4
    computed = x @ site.matrix() + bias
    np.testing.assert_allclose(computed, site.form.results(y, rows), rtol=F32, atol=F32)
    assert (site.form.items(y)[rows] < len(y)).all()
    stored = site.form.weight(site.matrix())
    np.testing.assert_array_equal(stored.astype(np.float32), module.weights["w"].numpy())


def test_reconstruction_equals_least_squares_with_its_ridge() -> None:
    module = stack(layers=1)
    dense, given = module.clone(), samples()
    kept = np.arange(0, WIDTH, 2)
    done, _ = cut(module, {"up0.1": kept}, given, "reconstruct")
    assert next(iter(done.errors)) == "down0"  # then what reads the stream
    x = np.concatenate([each["x"] for each in given]).reshape(-1, 16).astype(np.float64)
    arrays = {name: dense.weights[name].numpy().astype(np.float64) for name in dense.weights}
    hidden = np.maximum(x @ arrays["first"] @ arrays["up0"] + arrays["bias0"], 0)
    goal = hidden @ arrays["down0"]
    left = hidden[:, kept]
    lacking = goal - left @ arrays["down0"][kept]
    fits = []
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        centred = left - left.mean(0)
        damping = np.sqrt(ridge * np.square(centred).sum(0).mean())
        wide = np.concatenate([centred, damping * np.eye(len(kept))])
        aim = np.concatenate([lacking - lacking.mean(0), np.zeros((len(kept), 32))])
        fits.append(arrays["down0"][kept] + np.linalg.lstsq(wide, aim, rcond=None)[0])
    found = module.weights["down0"].numpy()
    scale = np.abs(found).max()
    assert min(np.abs(found - fit).max() for fit in fits) <= 1e-5 * scale


def test_repair_beats_plain_deletion_on_every_layer() -> None:
    module = stack(layers=3)
    dense, given, other = module.clone(), samples(count=60), samples(count=20, seed=9)
    plain = module.clone()
    choice = {f"up{i}.1": np.arange(0, WIDTH, 2) for i in range(3)}
    done, _ = cut(module, choice, given, "reconstruct")
    assert {"down0", "down1", "down2"} <= done.errors.keys()
    assert all(after < before for before, after in done.errors.values())
    cut(plain, choice, given[:1], "bias")
    assert error(dense, module, other) < 0.5 * error(dense, plain, other)


def test_what_nothing_reads_goes_without_a_trace() -> None:
    module = stack(layers=2)
    removed = np.arange(5, 25)
    down = module.weights["down1"].numpy().copy()
    down[removed] = 0
    module.weights.set("down1", ArrayWeight(down))
    dense, given = module.clone(), samples()
    count = sum(int(np.prod(module.weights[name].shape)) for name in module.weights)
    done, _ = cut(module, {"up1.1": np.setdiff1d(np.arange(WIDTH), removed)}, given, "reconstruct")
    assert done.num_layers == 0
    left = sum(int(np.prod(module.weights[name].shape)) for name in module.weights)
    assert count - left == len(removed) * (32 + 1 + 32)
    np.testing.assert_allclose(outputs(module, given), outputs(dense, given), rtol=0, atol=1e-6)


def test_a_bias_makes_up_for_constant_inputs_exactly() -> None:
    module = stack(layers=1)
    removed = np.arange(10, 40)
    up = module.weights["up0"].numpy().copy()
    up[:, removed] = 0  # relu(bias): the same on every input
    module.weights.set("up0", ArrayWeight(up))
    bias = np.abs(module.weights["bias0"].numpy()) + 0.5
    module.weights.set("bias0", ArrayWeight(bias.astype(np.float32)))
    dense, given, other = module.clone(), samples(count=4), samples(count=4, seed=5)
    kept = np.setdiff1d(np.arange(WIDTH), removed)
    done, _ = cut(module, {"up0.1": kept}, given, "bias")
    assert (done.num_layers, done.num_biases) == (1, 1)
    scale = np.abs(outputs(dense, other)).max()
    assert np.abs(outputs(module, other) - outputs(dense, other)).max() <= 1e-6 * scale
    np.testing.assert_array_equal(
        module.weights["down0"].numpy(), dense.weights["down0"].numpy()[kept]
    )


NORMED = """
    %a = conv(%x, %first) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]}
    %r = relu(%a)
    %b = conv(%r, %second) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]}
    %n = batch_norm(%b, %gain, %shift, %mean, %var) {epsilon = 0.001}
    %c = relu(%n)
    %y = conv(%c, %last) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
"""
NORMED_WEIGHTS = {
    "first": "f32[24, 3, 3, 3]", "second": "f32[16, 24, 3, 3]", "gain": "f32[16]",
    "shift": "f32[16]", "mean": "f32[16]", "var": "f32[16]", "last": "f32[5, 16, 1, 1]",
}  # fmt: skip


def _normed() -> Module:
    module = spelled(NORMED, "B, 3, H, W", weights=NORMED_WEIGHTS)
    variance = np.abs(module.weights["var"].numpy()) + 0.5
    module.weights.set("var", ArrayWeight(variance.astype(np.float32)))
    return module


def test_statistics_of_batch_norms_follow_what_flows() -> None:
    module = _normed()
    given = samples((4, 3, 6, 6), 6)
    coupling = Coupling(module)
    before = Counterpart.before(coupling, {})
    scaled = module.weights["second"].numpy() * np.float32(0.25)  # all that pruning may do is known
    module.weights.set("second", ArrayWeight(scaled))
    dense = before.module
    (node,) = (node for node in module.graph if node.op is batch_norm)
    now = Frontier(module, OrtActivations(), given)
    then = Frontier(dense, OrtActivations(), given)
    assert refresh(module, node, before, now, then)
    ratio = module.weights["var"].numpy() / dense.weights["var"].numpy()
    np.testing.assert_allclose(ratio, 1 / 16, rtol=F32)
    # epsilon, which does not scale, is a hundredth of the least variance
    assert error(dense, module, given) < 1e-3


@pytest.mark.parametrize(("method", "part"), [("bias", 0.9), ("reconstruct", 0.6)])
def test_convolutions_and_norms_are_repaired(method: Method, part: float) -> None:
    module = _normed()
    dense, given = module.clone(), samples((4, 3, 8, 8), 16)
    other, plain = samples((4, 3, 8, 8), 4, seed=8), module.clone()
    kept = np.arange(0, 24, 2)
    done, _ = cut(module, {"first.0": kept}, given, method)
    coupling = Coupling(plain)
    group = next(g for g in coupling.groups if ("first", 0) in g.weights)
    slice_module(coupling, {group: kept})
    assert done.changed
    assert error(dense, module, other) < part * error(dense, plain, other)


def test_padding_does_not_count() -> None:
    body = """
        %m = cast(%attention_mask) {to = f32}
        %w = unsqueeze(%m) {axes = [2]}
        %h = matmul(%x, %up)
        %a = relu(%h)
        %d = matmul(%a, %down)
        %y = mul(%d, %w)
    """
    weights = {"up": "f32[16, 48]", "down": "f32[48, 8]"}
    inputs = "%x : f32[B, S, 16], %attention_mask : i64[B, S]"
    found = []
    for noise in (0.0, 1e3):
        module = spelled(body, weights=weights, inputs=inputs)
        given = samples((2, 6, 16), 16)
        for each in given:
            each["attention_mask"] = np.array([[1] * 6, [1, 1, 1, 0, 0, 0]])
            each["x"][1, 3:] = noise
        cut(module, {"up.1": np.arange(24)}, given, "reconstruct")
        found.append(module.weights["down"].numpy())
    np.testing.assert_array_equal(found[0], found[1])


def test_prune_repairs_where_samples_are_given_and_says_what_it_brought() -> None:
    given, dense = samples(count=60), stack()
    ctx = Context(samples=given, activations=OrtActivations())
    repaired, plain = stack(), stack()
    result = Prune("flops:0.5").run(repaired, ctx)
    assert result.stats["error-repaired"] < 0.7 * result.stats["error-pruned"]
    assert result.stats["repaired-layers"] > 0
    assert "repaired-layers" not in Prune("flops:0.5", repair="none").run(plain, ctx).stats
    other = samples(count=10, seed=3)
    assert error(dense, repaired, other) < 0.7 * error(dense, plain, other)


def test_layers_that_see_fewer_rows_than_inputs_are_told_of() -> None:
    few, many = stack(), stack()
    for module, count in ((few, 4), (many, 60)):
        ctx = Context(samples=samples(count=count), activations=OrtActivations())
        Prune("flops:0.6", criterion="l2").run(module, ctx)
    assert not many.warnings
    (text,) = few.warnings
    assert "were repaired on fewer rows" in text


def test_without_data_generated_inputs_serve() -> None:
    probes = samples(count=60, seed=11)
    dense, repaired, plain = stack(), stack(), stack()
    ctx = Context(probes=probes, activations=OrtActivations())
    assert "repaired-layers" not in Prune("flops:0.6").run(plain, ctx).stats
    result = Prune("flops:0.6", criterion="l2", repair="reconstruct").run(repaired, ctx)
    assert result.stats["repaired-layers"] > 0
    # inputs of another kind than those that it is judged on: sparse ones
    other = samples(count=20, seed=12)
    for each in other:
        each["x"][..., ::2] = 0
    assert error(dense, repaired, other) < error(dense, plain, other)


def test_repair_needs_something_that_runs() -> None:
    with pytest.raises(UsageError, match="nothing here runs the module"):
        Prune("flops:0.5", repair="bias").run(stack(), Context(probes=samples()))
