"""Methods that find codes: half-quadratic, FlexRound, AWQ."""

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.evaluate import evaluate
from regraft.ir.weights import ArrayWeight
from regraft.passes.equivalence import Awq
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize
from regraft.passes.quantization.encoding import grid_of, round_to
from regraft.passes.quantization.flexround import flexround
from regraft.passes.quantization.formats import FORMATS, INT3, INT4, UINT4
from regraft.passes.quantization.hqq import hqq
from tests.passes.equivalence.modules import DECODER, module, texts


def tailed(size=96, width=24, seed=0):
    return np.random.default_rng(seed).standard_t(3, (size, width)).astype(np.float32)


def moments_of(size=96, seed=1):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(400, size)) @ rng.normal(size=(size, size))
    return rows.T @ rows


def loss(found, matrix, moments):
    error = found.decode().astype(np.float64) - matrix
    return float(np.vdot(error, moments @ error))


def nearest_of(matrix, fmt, group):
    return round_to(matrix, grid_of(matrix, fmt, group))


@pytest.mark.parametrize("fmt", [INT3, INT4, UINT4], ids=lambda fmt: fmt.name)
def test_hqq_has_less_error_than_nearest_without_data(fmt):
    matrix = tailed()
    found, plain = hqq(matrix, fmt, 48), nearest_of(matrix, fmt, 48)
    size = np.abs(found.decode() - matrix) ** 0.7
    assert size.sum() < 0.999 * (np.abs(plain.decode() - matrix) ** 0.7).sum()
    assert found.codes.min() >= fmt.low
    assert found.codes.max() <= fmt.high


@pytest.mark.parametrize("fmt", [INT3, UINT4, FORMATS["nf4"]], ids=lambda fmt: fmt.name)
def test_flexround_loses_less_than_nearest_in_what_the_layer_gives(fmt):
    matrix, moments = tailed(), moments_of()
    plain = nearest_of(matrix, fmt, 32)
    found = flexround(matrix, fmt, 32, moments, steps=300)
    assert loss(found, matrix, moments) < 0.95 * loss(plain, matrix, moments)
    assert found.codes.min() >= fmt.low
    assert found.codes.max() <= fmt.high


def test_flexround_begins_with_the_nearest_codes():
    matrix, moments = tailed(), moments_of()
    start = flexround(matrix, UINT4, 32, moments, steps=1)
    np.testing.assert_array_equal(start.codes, nearest_of(matrix, UINT4, 32).codes)


def context():
    return Context(samples=texts(12), activations=OrtActivations())


def skewed():
    """A decoder one of whose channels after a norm is thirty times the others."""
    net = module(DECODER)
    for name in ("g1", "g2"):
        gain = net.weights[name].numpy().copy()
        gain[3] *= 30
        net.weights.set(name, ArrayWeight(gain))
    return net


def error_after(net, *passes):
    before = skewed()
    for each in passes:
        each.run(net, context())
    total = scale = 0.0
    for sample in texts(6):
        (want,), (got,) = evaluate(before, sample).values(), evaluate(net, sample).values()
        total += float(np.square(got - want).sum())
        scale += float(np.square(want).sum())
    return (total / scale) ** 0.5


def test_awq_lowers_the_error_of_rounded_weights():
    rounding = Quantize(weights="int4", group=16, method="round", embeddings="none")
    plain = error_after(skewed(), rounding)
    scaled = error_after(skewed(), Awq(weights="int4", group=16), rounding)
    assert scaled < 0.8 * plain


@pytest.mark.parametrize(
    ("weights", "method"),
    [
        ("int3", "hqq"), ("uint3", "gptq"), ("nf4", "gptq"), ("nf4", "flexround"), ("fp4", "gptq"),
        ("mxfp4", "round"), ("nvfp4", "gptq"), ("fp8_e4m3", "round"), ("uint4", "flexround"),
    ],
)  # fmt: skip
def test_formats_go_with_methods(weights, method):
    bound = {"fp8_e4m3": 0.15, "int3": 0.8, "uint3": 0.8}.get(weights, 0.4)
    error = error_after(
        skewed(), Quantize(weights=weights, group=16, method=method, embeddings="none")
    )
    assert 0 < error < bound
