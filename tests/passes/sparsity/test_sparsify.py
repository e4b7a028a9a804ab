"""The pass `sparsify`: patterns, errors of methods, tied constants, rates of layers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes import PASSES
from regraft.passes.calibration.moments import Moments, gather_moments, key_of
from regraft.passes.calibration.products import ConstantProduct, constant_products
from regraft.passes.calibration.tied import matrices_of
from regraft.passes.pipeline import parse_pipeline
from regraft.passes.protocol import Context, Skip
from regraft.passes.recovery.zeros import sparse_tensors
from regraft.passes.sparsity.allocate import spectral_rates
from regraft.passes.sparsity.masks import Pattern, kept_in_groups, kept_of_all
from regraft.passes.sparsity.methods import Layer, sparse
from regraft.passes.sparsity.sparsify import Sparsify

Array = np.ndarray[Any, Any]

TEXT = """
module "net"
symbol B
weight @conv : f32[16, 8, 3, 3] role=param = random(1)
weight @grouped : f32[16, 4, 3, 3] role=param = random(2)
weight @up : f32[16, 32] role=param = random(3)
weight @down : f32[8, 32] role=param = random(4)
graph(%x : f32[B, 8, 6, 6]) {
  %conv = weight @conv
  %grouped = weight @grouped
  %up = weight @up
  %down = weight @down
  %a = conv(%x, %conv) {strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]}
  %b = relu(%a)
  %c = conv(%b, %grouped) {strides = [2, 2], dilations = [1, 1], pads = [0, 0, 0, 0], groups = 4}
  %r = relu(%c)
  %p = reduce_mean(%r) {axes = [2, 3], keepdims = false}
  %h = matmul(%p, %up)
  %i = relu(%h)
  %y = gemm(%i, %down) {trans_b = true}
  return %y
}
"""


def samples(count: int = 12) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal((1, 8, 1, 1)))  # channels of very different sizes
    return [
        {"x": (rng.standard_normal((4, 8, 6, 6)) * scale).astype(np.float32)} for _ in range(count)
    ]


def context() -> Context:
    return Context(samples=samples(), activations=OrtActivations())


def net() -> Module:
    return parse_module(TEXT)


def test_stacks_and_rows_give_what_the_operators_compute() -> None:
    module, sample = net(), samples(1)[0]
    products = [
        each for each in constant_products(module.graph) if isinstance(each, ConstantProduct)
    ]
    assert [each.node.op.name for each in products] == ["conv", "conv", "matmul", "gemm"]
    values = [value for each in products for value in (each.x, each.node.output)]
    (found,) = OrtActivations().activations(module, values, [sample])
    for each in products:
        stack = each.stack()
        np.testing.assert_array_equal(each.layout.unstack(stack), module.weights[each.name].numpy())
        result = each.layout.rows(found[each.x]) @ stack  # [E, R, N]
        want = found[each.node.output]
        if want.ndim == 4:  # [B, (E N), h, w]
            want = want.reshape(len(want), len(stack), -1, want.shape[2] * want.shape[3])
            want = want.transpose(1, 0, 3, 2)
        # sums of at most 144 products in another order
        np.testing.assert_allclose(
            result.ravel(), want.reshape(result.shape).ravel(), rtol=0,
            atol=32 * np.finfo(np.float32).eps * np.abs(want).max(),
        )  # fmt: skip


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "unstructured"])
def test_zeros_are_exactly_as_many_and_where_they_were_asked_for(method: str, pattern: str) -> None:
    module = net()
    result = Sparsify(pattern=pattern, method=method, rate=0.5).run(module, context())  # type: ignore[arg-type]
    assert result.changed
    items, skipped = matrices_of(module)
    assert not skipped
    assert len(items) == 4
    for item in items:
        stack = item.stack()
        if pattern == "unstructured":
            assert abs(np.count_nonzero(stack) - stack.size / 2) < 1
            continue
        keep = int(pattern[0])
        groups = (stack != 0).reshape(len(stack), -1, 4, stack.shape[2]).sum(2)
        assert (groups == keep).all()  # every one of the groups
    assert set(sparse_tensors(module)) == {"conv", "grouped", "up", "down"}


def test_groups_of_a_convolution_are_channels_at_one_tap() -> None:
    module = net()
    Sparsify(pattern="2:4", method="magnitude").run(module, Context())
    kernel = module.weights["conv"].numpy()  # [O, I, 3, 3]
    assert ((kernel != 0).reshape(16, 2, 4, 3, 3).sum(2) == 2).all()


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_sparsegpt_errs_less_than_wanda_and_wanda_less_than_magnitude(pattern: str) -> None:
    errors: dict[str, dict[str, float]] = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        reference = net()
        products = [p for p in constant_products(reference.graph) if isinstance(p, ConstantProduct)]
        found = gather_moments(reference, products, context(), "test")
        made = Pattern(2, 4) if pattern == "2:4" else Pattern()
        errors[method] = {}
        for each in products:
            layer = Layer(each.name, each.stack(), found[key_of(each)])
            errors[method][each.name] = layer.error(sparse(layer, method, made, 0.5))
    for name in errors["wanda"]:
        assert 0 < errors["sparsegpt"][name] < errors["wanda"][name]
    # inputs of very different sizes: only there does the norm say more than the number
    assert errors["wanda"]["conv"] < errors["magnitude"]["conv"]


def test_sparsegpt_of_independent_inputs_is_wanda() -> None:
    """Nothing can make up for what goes."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((1, 16, 8)).astype(np.float32)
    second = np.diag(np.exp(rng.standard_normal(16)) ** 2)
    damped = second + 0.01 * np.trace(second) / 16 * np.eye(16)
    layers = [Layer("w", matrix, Moments(m[None], np.zeros((1, 16)), 1)) for m in (second, damped)]
    got = sparse(layers[0], "sparsegpt", Pattern(2, 4), 0.5)
    want = sparse(layers[1], "wanda", Pattern(2, 4), 0.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # roundings of an inverse in f64


def test_of_equal_numbers_the_first_stay() -> None:
    ones = np.ones((1, 8, 2), np.float32)
    mask = kept_in_groups(ones, Pattern(2, 4))
    assert mask[0, :, 0].tolist() == [True, True, False, False] * 2
    assert kept_of_all(ones, 0.25, "output")[0, :, 0].sum() == 6


def test_a_constant_that_is_read_twice_is_one_layer_and_sees_both_inputs() -> None:
    module = parse_module("""
module "tied"
symbol B
weight @w : f32[32, 32] role=param = random(1)
graph(%x : f32[B, 32]) {
  %w = weight @w
  %a = matmul(%x, %w)
  %b = relu(%a)
  %c = matmul(%b, %w)
  return %c
}
""")
    rng = np.random.default_rng(0)
    given = [{"x": rng.standard_normal((64, 32)).astype(np.float32)} for _ in range(2)]
    ctx = Context(samples=given, activations=OrtActivations())
    (item,), _ = matrices_of(module)
    found = gather_moments(module, item.products, ctx, "test")
    assert item.moments(found).num_rows == 256
    result = Sparsify(pattern="2:4").run(module, ctx)
    assert result.stats["layers"] == 1
    assert result.stats["sparsity"] == 0.5


def test_a_table_that_is_also_read_by_index_is_left_alone() -> None:
    module = parse_module("""
module "lm"
symbol B
weight @table : f32[64, 16] role=param = random(1)
weight @w : f32[16, 16] role=param = random(2)
graph(%ids : i64[B]) {
  %table = weight @table
  %w = weight @w
  %x = gather(%table, %ids) {axis = 0}
  %h = matmul(%x, %w)
  %y = gemm(%h, %table) {trans_b = true}
  return %y
}
""")
    before = module.weights["table"].numpy().copy()
    result = Sparsify(pattern="2:4", method="magnitude").run(module, Context())
    assert result.skipped == (Skip("table", "`gather` reads it too"),)
    np.testing.assert_array_equal(module.weights["table"].numpy(), before)
    assert result.stats["layers"] == 1


def test_rates_of_spectra_hit_the_target() -> None:
    exponents = [2.0, 3.5, 2.6, 5.0, 2.1]
    sizes = [1000, 200, 5000, 123, 777]
    for rate in (0.2, 0.5, 0.7, 0.9):
        rates = spectral_rates(exponents, sizes, rate)
        assert abs(float(rates @ sizes) / sum(sizes) - rate) < 1e-6
        assert rates.min() > 0
        assert rates.max() <= 1
        assert rates[0] < rates[2] < rates[1]  # heavier tails lose less


def _stack_of_four() -> tuple[Module, Context]:
    lines = ['module "stack"', "symbol B"]
    lines += [f"weight @w{i} : f32[24, 24] role=param = random({i})" for i in range(4)]
    lines.append("graph(%h0 : f32[B, 24]) {")
    for i in range(4):
        lines += [f"  %w{i} = weight @w{i}", f"  %m{i} = matmul(%h{i}, %w{i})"]
        lines += [f"  %h{i + 1} = relu(%m{i})" if i < 3 else "  %h4 = tanh(%m3)"]
    module = parse_module("\n".join([*lines, "  return %m3", "}"]))
    rng = np.random.default_rng(1)
    # from low rank and small to full and large: layers that need their numbers differently
    for i in range(4):
        low = rng.standard_normal((24, 2 + 6 * i)) @ rng.standard_normal((2 + 6 * i, 24))
        noisy = low / np.linalg.norm(low) * 24**0.5 + 0.02 * rng.standard_normal((24, 24))
        module.weights.set(f"w{i}", ArrayWeight((noisy * (1 + i)).astype(np.float32)))
    given = [{"h0": rng.standard_normal((64, 24)).astype(np.float32)} for _ in range(4)]
    return module, Context(samples=given, activations=OrtActivations())


def test_the_programme_loses_no_more_than_uniform_and_one_threshold() -> None:
    losses = {}
    for allocation in ("uniform", "global", "dp"):
        module, ctx = _stack_of_four()
        want = [evaluate(module, sample)["m3"] for sample in ctx.samples]
        result = Sparsify(rate=0.7, method="magnitude", allocation=allocation).run(module, ctx)
        assert result.stats["sparsity"] == pytest.approx(0.7, abs=0.01)
        got = [evaluate(module, sample)["m3"] for sample in ctx.samples]
        losses[allocation] = float(np.square(np.array(got) - np.array(want)).mean())
        if allocation == "dp":
            assert "additivity-r2" in result.stats
    assert losses["dp"] <= losses["uniform"]
    assert losses["dp"] <= losses["global"]


def test_what_the_programme_chose_is_the_best_of_all_by_its_losses() -> None:
    """Four layers of six levels: every combination."""
    from regraft.passes.solver import Problem, SeparateCosts, Unit, solve

    rng = np.random.default_rng(0)
    levels = np.array([0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    units = tuple(
        Unit(f"w{i}", levels, np.append(np.sort(rng.random(5))[::-1], 0.0)) for i in range(4)
    )
    tables = [levels * 10 * size for size in (10, 20, 30, 40)]
    for rate in (0.3, 0.5, 0.7):
        problem = Problem(units, SeparateCosts(tables), (1 - rate) * 1000)
        found = solve(problem, "dp")
        best = min(
            sum(float(unit.losses[k]) for unit, k in zip(units, choice, strict=True))
            for choice in itertools.product(range(6), repeat=4)
            if sum(t[k] for t, k in zip(tables, choice, strict=True)) <= problem.budget + 1e-9
        )
        assert found.loss == best


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pattern=4:2", "is no pattern"),
        ("pattern=half", "is no pattern"),
        ("rate=1", "is not from 0 to below 1"),
        ("pattern=2:4,allocation=dp", "equally sparse"),
        ("method=wanda", "needs samples"),
    ],
)
def test_what_does_not_go_together_is_refused(options: str, message: str) -> None:
    module = net()
    before = str(module)
    (item,) = parse_pipeline(f"sparsify{{{options}}}", PASSES)
    with pytest.raises(UsageError, match=message):
        item.run(module, Context(activations=OrtActivations()))
    assert str(module) == before
