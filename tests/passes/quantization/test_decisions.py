"""The budget of decisions: noise that it allows changes about that share of them, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from regraft.passes.quantization.convolutions import quantize_convolutions
from regraft.passes.quantization.decisions import Judge
from regraft.passes.quantization.formats import INT8

SCORES = """
module "scores"
symbol B
weight @w : f32[32, 10] = random(1)
weight @n : f32[32, 10] = random(2)
weight @a : f32[1] = splat {noise}
graph(%x : f32[B, 32]) {{
  %w = weight @w
  %n = weight @n
  %a = weight @a
  %m = mul(%n, %a)
  %v = add(%w, %m)
  %y = matmul(%x, %v)
  return %y
}}
"""

NET = """
module "net"
symbol B
weight @a : f32[64, 64, 3, 3] = random(1)
weight @b : f32[64, 64, 3, 3] = random(2)
graph(%x : f32[B, 64, 12, 12]) {
  %a = weight @a
  %b = weight @b
  %c = conv(%x, %a) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %d = relu(%c)
  %e = conv(%d, %b) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %y = relu(%e)
  return %y
}
"""


def scores(noise: float) -> str:
    return SCORES.format(noise=noise)


def test_what_uses_up_the_budget_changes_its_share_of_decisions() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 32)).astype(np.float32)
    module = parse_module(scores(0.0))
    judge = Judge(module, OrtActivations(), [{"x": x}], 0.05)
    want = evaluate(module, {"x": x})["y"].argmax(1)
    used, changed = [], []
    for noise in (0.02, 0.05, 0.1):
        noisy = parse_module(scores(noise))
        used.append(judge.damage(noisy))
        changed.append(float((evaluate(noisy, {"x": x})["y"].argmax(1) != want).mean()))
    # leads are near normal, their deviation goes by the square root of the part that is used
    at_budget = np.interp(1.0, np.sqrt(used), changed)
    assert 0.025 < at_budget < 0.1


@pytest.mark.parametrize(("budget", "expected"), [(1e-5, 0), (0.5, 2)])
def test_convolutions_stay_in_float_where_the_budget_says_so(budget: float, expected: int) -> None:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((4, 64, 12, 12)).astype(np.float32)} for _ in range(3)]
    module = parse_module(NET)
    ctx = Context(samples=samples, activations=OrtActivations())
    report = quantize_convolutions(module, ctx, INT8, "minmax", lambda name: False, budget)
    assert report.num_int8 == expected
    assert len(report.layers) == expected
    assert report.damage <= 1
    if not expected:
        assert all("budget" in skip.reason for skip in report.skipped)
    else:
        assert all(0 < layer.error < 0.05 for layer in report.layers)


@pytest.mark.parametrize(("budget", "expected"), [(1e-9, 0), (0.5, 1)])
def test_linear_layers_of_such_networks_keep_to_the_budget(budget: float, expected: int) -> None:
    text = NET.replace("  return %y", "  %z = matmul(%v, %h)\n  return %y, %z")
    text = text.replace("12, 12]) {", "12, 12], %v : f32[B, 64]) {\n  %h = weight @h")
    text = text.replace("graph(", "weight @h : f32[64, 10] = random(3)\ngraph(")
    rng = np.random.default_rng(1)
    samples = [
        {"x": rng.standard_normal((4, 64, 12, 12)).astype(np.float32),
         "v": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(3)
    ]  # fmt: skip
    module = parse_module(text)
    ctx = Context(samples=samples, activations=OrtActivations())
    result = Quantize(budget=budget, keep=("b",)).run(module, ctx)
    assert result.stats["linear-layers"] == expected
    reasons = {skip.node: skip.reason for skip in result.skipped}
    assert ("h" in reasons) is not bool(expected)
    if not expected:
        assert "`budget`" in reasons["h"]
        assert any("1 of 1 linear layers stay in float" in each for each in module.warnings)
        want, got = (evaluate(m, samples[0])["z"] for m in (parse_module(text), module))
        np.testing.assert_array_equal(got, want)
