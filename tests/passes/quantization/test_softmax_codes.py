"""Codes of softmax results, by themselves and written into a graph."""

from dataclasses import replace

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.passes.protocol import Context
from regraft.passes.quantization.quantize_softmax import QuantizeSoftmax
from regraft.passes.quantization.softmax_codes import ETAS, SoftmaxCodes, fitted

KINDS = ("log2", "log_sqrt2", "shift_log2", "tangent")

TEXT = """
module "net"
symbol B
graph(%x : f32[B, 12]) {
  %p = softmax(%x) {axis = -1}
  return %p
}
"""


def probabilities(count=400, size=24, sharpness=3.0, seed=0):
    scores = np.random.default_rng(seed).normal(size=(count, size)) * sharpness
    raw = np.exp(scores - scores.max(1, keepdims=True))
    return raw / raw.sum(1, keepdims=True)


def error(kind, bits, x):
    return fitted(x, kind, bits).error(x)


@pytest.mark.parametrize("sharpness", [1.5, 3.0])
def test_logarithms_of_finer_steps_halve_the_error_of_log2_at_four_bits(sharpness):
    x = probabilities(sharpness=sharpness)
    plain = error("log2", 4, x)
    assert error("log_sqrt2", 4, x) < 0.5 * plain
    assert error("shift_log2", 4, x) < 0.5 * plain


def test_shifted_logarithm_beats_log2_at_three_bits():
    x = probabilities()
    assert error("shift_log2", 3, x) < 0.7 * error("log2", 3, x)


def test_the_chosen_shift_is_the_best_of_its_grid():
    x = probabilities()
    chosen = fitted(x, "shift_log2", 4)
    for eta in ETAS:
        other = SoftmaxCodes("shift_log2", 4, chosen.scale, eta, low=float(np.log2(x.min() + eta)))
        assert chosen.error(x) <= other.error(x)


def test_no_small_step_of_a_parameter_is_better_than_what_was_chosen():
    x = probabilities()
    for kind in ("log2", "shift_log2", "tangent"):
        chosen = fitted(x, kind, 3)
        for name in ("scale", "eta", "angle"):
            for factor in (0.99, 1.01):
                other = replace(chosen, **{name: getattr(chosen, name) * factor})
                assert chosen.error(x) <= other.error(x) * 1.01


def test_tangent_is_closer_than_log2_above_one_half():
    x = probabilities(sharpness=5.0)
    large = x > 0.5
    tangent, plain = fitted(x, "tangent", 4), fitted(x, "log2", 4)
    assert (
        np.square(tangent.rounded(x) - x)[large].mean()
        < 0.1 * np.square(plain.rounded(x) - x)[large].mean()
    )


def test_parity_is_the_scale_of_the_half_step():
    codes = SoftmaxCodes("log_sqrt2", 4)
    want = np.exp2(-np.arange(16) / 2)
    np.testing.assert_allclose(codes.values(np.arange(16)), want, rtol=1e-12)


def test_whole_powers_are_shifts_less_eta():
    codes = SoftmaxCodes("shift_log2", 4, eta=0.05, low=-4.0, whole_powers=True)
    power = np.log2(codes.values(np.arange(16)) + 0.05)
    assert (np.abs(power - np.rint(power))[codes.values(np.arange(16)) > 0] < 1e-12).all()


def test_numbers_outside_of_a_softmax_are_rejected():
    with pytest.raises(UsageError, match="0 to 1"):
        fitted(np.array([0.5, 1.7]), "log2", 4)
    with pytest.raises(UsageError, match="2 to 8"):
        fitted(np.array([0.5]), "log2", 9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_does_what_the_codes_say(kind):
    samples = [
        {"x": np.random.default_rng(seed).normal(size=(5, 12)).astype(np.float32) * 3}
        for seed in range(4)
    ]
    net, before = parse_module(TEXT), parse_module(TEXT)
    ctx = Context(samples=samples, activations=OrtActivations())
    result = QuantizeSoftmax(kind=kind, bits=4).run(net, ctx)
    assert result.stats["softmaxes"] == 1
    seen = np.concatenate([next(iter(evaluate(before, each).values())) for each in samples])
    codes = fitted(seen, kind, 4)
    for sample in samples:
        (exact,), (got,) = evaluate(before, sample).values(), evaluate(net, sample).values()
        want = codes.rounded(exact.astype(np.float64))
        # a logarithm in f32 may fall to the other side of a border: one of sixty numbers at most
        assert (np.abs(got - want) > 1e-6).mean() < 1 / 50
        assert len(np.unique(got)) <= 17
