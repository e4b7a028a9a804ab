"""The pass `factorize`: errors within bounds, counts from formulas, the same results in ONNX."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.verify import verify
from regraft.passes import PASSES
from regraft.passes.calibration.moments import Moments
from regraft.passes.factorize.blocks import block_spectrum
from regraft.passes.factorize.factorize import Factorize
from regraft.passes.factorize.mpo import factors_of, first_cut, full_bond, num_weights
from regraft.passes.legalize import Legalize
from regraft.passes.pipeline import parse_pipeline
from regraft.passes.protocol import Context

Array = np.ndarray[Any, Any]
EPS = float(np.finfo(np.float32).eps)

TEXT = """
module "net"
symbol B
symbol S
weight @up : f32[48, 96] role=param = random(1)
weight @down : f32[24, 96] role=param = random(2)
weight @left : f32[16, 24] role=param = random(3)
weight @bias : f32[24] role=param = random(4)
graph(%x : f32[B, S, 48]) {
  %up = weight @up
  %down = weight @down
  %left = weight @left
  %bias = weight @bias
  %h = matmul(%x, %up)
  %r = relu(%h)
  %m = reduce_mean(%r) {axes = [1], keepdims = false}
  %g = gemm(%m, %down, %bias) {trans_b = true}
  %t = transpose(%g) {perm = [1, 0]}
  %y = matmul(%left, %t)
  return %y
}
"""


def net() -> Module:
    return parse_module(TEXT)


def samples(count: int = 6) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((48, 48)) * np.exp(-np.arange(48) / 8)  # a few directions carry most
    return [{"x": (rng.standard_normal((3, 7, 48)) @ mix).astype(np.float32)} for _ in range(count)]


def context(*, with_samples: bool = False) -> Context:
    return Context(
        samples=samples() if with_samples else (), activations=OrtActivations(),
        legalizers=legalizers(), target="ort-cpu",
    )  # fmt: skip


METHODS = ["svd", "whitened", "block-dense", "block-shuffle", "mpo"]


@pytest.mark.parametrize("method", METHODS)
def test_onnx_runtime_computes_the_merged_matrices(method: str) -> None:
    """Pre-merged equals factored."""
    module, reference = net(), net()
    ctx = context(with_samples=True)
    result = Factorize(method=method, rate=0.4).run(module, ctx)  # type: ignore[arg-type]
    verify(module)
    assert result.stats["layers"] >= 1
    assert result.stats["numbers"] <= 0.6 * result.stats["numbers-before"]
    held = sum(module.weights[name].numpy().size for name in module.weights if name != "bias")
    skipped = {skip.node for skip in result.skipped if "whole" not in skip.reason}
    assert held - sum(reference.weights[n].numpy().size for n in skipped) == result.stats["numbers"]
    sample = samples(1)[0]
    want = evaluate(module, sample)["y"]
    Legalize("ort-cpu").run(module, ctx)
    (got,) = OrtRunner(to_proto(module, profile="ort-cpu"))(sample).values()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_is_the_same_model(method: str) -> None:
    module, reference = net(), net()
    result = Factorize(method=method, rank=10_000).run(module, context(with_samples=True))  # type: ignore[arg-type]
    assert result.stats["layers"] == (2 if method in METHODS[2:] else 3)
    for sample in samples(2):
        got, want = (evaluate(each, sample)["y"] for each in (module, reference))
        # the whitened factors take a triangular solve of a matrix of condition 1e3 in f64
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPS * np.abs(want).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_errors_are_within_their_bounds(method: str, rank: int) -> None:
    module = net()
    result = Factorize(method=method, rank=rank).run(module, context(with_samples=True))  # type: ignore[arg-type]
    bounds = result.decisions["bounds"]
    assert result.layers
    for layer in result.layers:
        assert 0 < layer.error <= bounds[layer.name] * (1 + 1e-5) + EPS  # factors are f32
        assert layer.of_results == (method == "whitened")


def test_bounds_of_blocks_are_errors() -> None:
    matrix = np.random.default_rng(0).standard_normal((24, 36)).astype(np.float32)
    for grid in ((1, 1), (4, 1), (4, 6), (3, 4)):
        found = block_spectrum(matrix, grid)
        for rank in (1, 2, 3):
            factors = found.cut(rank)
            error = float(np.linalg.norm(factors.merged() - matrix.astype(np.float64)))
            assert error == pytest.approx(found.lost(rank), rel=1e-6)
            assert factors.num_weights == rank * (grid[1] * 24 + grid[0] * 36)
            assert factors.num_weights == found.num_weights(rank)
        assert max(found.ranks) < 24
        assert (
            found.num_weights(max(found.ranks)) < 24 * 36 <= found.num_weights(max(found.ranks) + 1)
        )


def test_what_whitening_loses_is_the_error_of_the_results() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((400, 32)) * np.exp(-np.arange(32) / 6)).astype(np.float32)
    matrix = rng.standard_normal((32, 20)).astype(np.float32)
    moments = Moments.empty(1, 32)
    moments.update(rows[None])
    moments.flush()
    found, plain = block_spectrum(matrix, (1, 1), moments.second[0]), block_spectrum(matrix, (1, 1))
    exact = rows.astype(np.float64) @ matrix
    for rank in (2, 6, 12):
        error = float(np.linalg.norm(rows @ found.cut(rank).merged() - exact))
        # second moments are damped by 1e-6 of their mean: little is added
        assert error <= found.lost(rank) * (1 + 1e-6)
        assert error == pytest.approx(found.lost(rank), rel=2e-3)
        assert error < float(np.linalg.norm(rows @ plain.cut(rank).merged() - exact))


@pytest.mark.parametrize("count", [2, 3])
def test_a_train_of_full_bond_is_exact_and_others_are_within_their_bound(count: int) -> None:
    matrix = np.random.default_rng(2).standard_normal((24, 36)).astype(np.float32)
    inputs, outputs = factors_of(24, count), factors_of(36, count)
    assert inputs is not None
    assert outputs is not None
    assert (prod(inputs), prod(outputs)) == (24, 36)
    top = full_bond(inputs, outputs)
    found = first_cut(matrix, inputs, outputs)
    whole = found.train(top)
    assert np.abs(whole.merged() - matrix).max() <= 1e-6
    for bond in (1, 3, 7, top):
        train = found.train(bond)
        error = float(np.linalg.norm(train.merged().astype(np.float64) - matrix))
        assert error <= train.bound + 1e-5
        assert found.bound(bond) == train.bound
        assert train.num_weights == num_weights(inputs, outputs, bond)
        assert train.num_weights == sum(core.size for core in train.cores)


def test_factors_are_even_and_refused_where_primes_lack() -> None:
    assert factors_of(384, 2) == (16, 24)
    assert factors_of(1536, 3) == (8, 12, 16)
    assert factors_of(7, 2) is None


def test_convolutions_become_two() -> None:
    module = parse_module("""
module "net"
symbol B
weight @w : f32[32, 16, 3, 3] role=param = random(1)
weight @b : f32[32] role=param = random(2)
weight @g : f32[32, 8, 1, 1] role=param = random(3)
graph(%x : f32[B, 16, 9, 9]) {
  %w = weight @w
  %b = weight @b
  %g = weight @g
  %h = conv(%x, %w, %b) {strides = [2, 2], dilations = [1, 1], pads = [1, 1, 1, 1]}
  %y = conv(%h, %g) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0], groups = 4}
  return %y
}
""")
    reference = module.clone()
    rng = np.random.default_rng(0)
    sample = {"x": rng.standard_normal((2, 16, 9, 9)).astype(np.float32)}
    result = Factorize(method="svd", rank=32).run(module, Context())
    assert [skip.reason for skip in result.skipped] == ["`conv` in groups"]
    got, want = (evaluate(each, sample)["y"] for each in (module, reference))
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPS * np.abs(want).max())
    assert module.weights["w.left"].shape == (32, 16, 3, 3)
    assert module.weights["w.right"].shape == (32, 32, 1, 1)


def test_a_blend_of_one_is_the_dense_model_and_of_zero_the_factors() -> None:
    sample = samples(1)[0]
    results = {}
    for blend in (0.0, 0.25, 1.0):
        module = net()
        Factorize(method="block-shuffle", rank=2, blend=blend).run(module, Context())
        verify(module)
        results[blend] = evaluate(module, sample)["y"]
    np.testing.assert_array_equal(results[1.0], evaluate(net(), sample)["y"])
    scale = np.abs(results[1.0]).max()
    assert np.abs(results[0.25] - results[0.0]).max() > 0.01 * scale
    assert np.abs(results[0.25] - results[1.0]).max() > 0.01 * scale


def test_the_solver_keeps_what_cannot_be_cut() -> None:
    """Of two layers, the one of full rank stays nearly whole."""
    module = parse_module("""
module "net"
symbol B
weight @easy : f32[64, 64] role=param = random(1)
weight @hard : f32[64, 64] role=param = random(2)
graph(%x : f32[B, 64]) {
  %easy = weight @easy
  %hard = weight @hard
  %h = matmul(%x, %easy)
  %r = relu(%h)
  %y = matmul(%r, %hard)
  return %y
}
""")
    from regraft.ir.weights import ArrayWeight

    rng = np.random.default_rng(0)
    low = (rng.standard_normal((64, 6)) @ rng.standard_normal((6, 64))).astype(np.float32)
    module.weights.set("easy", ArrayWeight(low))
    uneven = Factorize(method="svd", rate=0.35)
    result = uneven.run(module, Context())
    assert result.decisions["ranks"]["easy"] <= 8
    assert "hard" not in result.decisions["ranks"]
    assert result.stats["worst-error"] < 1e-5
    again = net()
    replayed = Context(replay={"factorize": {"method": "svd", "ranks": {"up": 5}}})
    assert Factorize(rate=0.1).run(again, replayed).decisions["ranks"] == {"up": 5}
    assert again.weights["up.left"].shape == (48, 5)


def test_measured_losses_choose_ranks() -> None:
    module, reference = net(), net()
    ctx = context(with_samples=True)
    result = Factorize(method="svd", rate=0.3, allocation="measured").run(module, ctx)
    assert {line.name for line in result.plots[0].lines} == {"left", "up", "down"}
    other = net()
    Factorize(method="svd", rate=0.3, allocation="uniform").run(other, ctx)

    def loss(changed: Module) -> float:
        pairs = [(evaluate(changed, s)["y"], evaluate(reference, s)["y"]) for s in samples()]
        return sum(float(np.square(a - b).sum()) for a, b in pairs)

    assert 0 < loss(module) <= loss(other)


def test_a_constant_that_is_read_twice_is_factored_once() -> None:
    module = parse_module("""
module "tied"
symbol B
weight @w : f32[32, 32] role=param = random(1)
graph(%x : f32[B, 32]) {
  %w = weight @w
  %a = matmul(%x, %w)
  %r = relu(%a)
  %c = matmul(%r, %w)
  return %c
}
""")
    result = Factorize(method="svd", rank=4).run(module, Context())
    assert result.stats["layers"] == 1
    assert sorted(module.weights) == ["w.left", "w.right"]
    verify(module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("rate=1.5", UsageError, "`rate`: 1.5 is not in"),
        ("cores=1", UsageError, "`cores`: 1 is not in"),
        ("method=whitened", UsageError, "needs samples"),
        ("rate=1", TargetError, "no choice is within the budget"),
    ],
)
def test_what_cannot_be_met_is_refused(options: str, error: type[Exception], message: str) -> None:
    module = net()
    before = str(module)
    (item,) = parse_pipeline(f"factorize{{{options}}}", PASSES)
    with pytest.raises(error, match=message):
        item.run(module, Context(activations=OrtActivations()))
    assert str(module) == before
