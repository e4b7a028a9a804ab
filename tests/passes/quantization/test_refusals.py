"""What `quantize` and `quantize-mixed` refuse, or leave in float, and what they say of it."""

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.pipeline import format_pass
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize, QuantizeMixed

TEXT = """
module "net"
symbol B
weight @up : f32[32, 48] = random(2)
weight @down : f32[48, 32] = random(4)

graph(%x : f32[B, 32]) {
  %up = weight @up
  %down = weight @down
  %h = matmul(%x, %up)
  %a = relu(%h)
  %y = matmul(%a, %down)
  return %y
}
"""
TABLES = """
module "net"
symbol B
weight @words : f32[400, 32] = random(1)
weight @types : f32[2, 32] = random(2)
weight @up : f32[32, 48] = random(3)

graph(%ids : i64[B], %kinds : i64[B]) {
  %words = weight @words
  %types = weight @types
  %up = weight @up
  %a = gather(%words, %ids) {axis = 0}
  %b = gather(%types, %kinds) {axis = 0}
  %x = add(%a, %b)
  %y = matmul(%x, %up)
  return %y
}
"""
PASSES = (
    Quantize(), Quantize(activations="dynamic"), Quantize(weights="uint4"),
    Quantize(weights="nf4", method="round"), QuantizeMixed(target="bits:5"),
)  # fmt: skip


def context(make=None, count=12):
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(8, 32)).astype(np.float32) for _ in range(count)]
    rows = rows if make is None else [make(each) for each in rows]
    return Context(samples=[{"x": each} for each in rows], activations=OrtActivations())


def spoiled(number):
    module = parse_module(TEXT)
    array = np.array(module.weights["down"].numpy())
    array[3, 5] = number
    module.weights.set("down", ArrayWeight(array))
    return module


@pytest.mark.parametrize("item", PASSES, ids=format_pass)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(item, number):
    with pytest.raises(UsageError, match="weight `down` holds NaN or Inf"):
        item.run(spoiled(number), context())


@pytest.mark.parametrize("item", PASSES[:4], ids=format_pass)
def test_a_weight_that_is_not_finite_is_named_without_samples_too(item):
    with pytest.raises(UsageError, match="weight `down` holds NaN or Inf"):
        item.run(spoiled(np.nan), Context())


def test_such_a_weight_can_be_kept():
    module = spoiled(np.nan)
    result = Quantize(keep=("down",)).run(module, Context())
    assert result.stats["linear-layers"] == 1


@pytest.mark.parametrize("item", [Quantize, lambda **o: QuantizeMixed(target="bits:5", **o)])
def test_a_glob_that_names_nothing_is_refused(item):
    with pytest.raises(UsageError, match="`dwon` names no weight") as caught:
        item(keep=("dwon",)).run(parse_module(TEXT), context())
    assert "`down`" in str(caught.value.hint)


@pytest.mark.parametrize("first", [Quantize(), Quantize(activations="static")])
@pytest.mark.parametrize("again", [Quantize(), QuantizeMixed(target="bits:5")])
def test_a_quantized_module_is_not_quantized_again(first, again):
    module = parse_module(TEXT)
    first.run(module, context())
    with pytest.raises(TargetError, match="2 products are by integer codes already"):
        again.run(module, context())


def test_a_layer_whose_input_is_always_zero_has_no_static_range():
    module, reference = parse_module(TEXT), parse_module(TEXT)
    result = Quantize(activations="static").run(module, context(np.zeros_like))
    assert {skip.node for skip in result.skipped} == {"up", "down"}
    assert all("0 on all samples" in skip.reason for skip in result.skipped)
    sample = context().samples[0]
    (want,), (got,) = (list(evaluate(each, sample).values()) for each in (reference, module))
    np.testing.assert_array_equal(got, want)


def test_samples_without_a_row_give_no_static_range():
    result = Quantize(activations="static").run(parse_module(TEXT), context(lambda x: x[:0]))
    assert {skip.node for skip in result.skipped} == {"up", "down"}


def test_moments_beyond_f32_are_said_to_be():
    with pytest.raises(UsageError, match="beyond f32"):
        Quantize(weights="uint4").run(
            parse_module(TEXT), context(lambda x: (x * 1e30).astype(np.float32))
        )


def test_tables_of_few_numbers_stay_in_float():
    module = parse_module(TABLES)
    result = Quantize(activations="none").run(module, Context())
    assert result.stats["tables"] == 1
    assert [(skip.node, skip.reason) for skip in result.skipped] == [
        ("types", "a table of few numbers")
    ]
    assert "types" in module.weights


def test_layers_of_other_floats_are_mixed_too():
    halves = TEXT.replace("f32", "f16")
    module = parse_module(halves)
    rng = np.random.default_rng(3)
    samples = [{"x": rng.normal(size=(8, 32)).astype(np.float16)} for _ in range(12)]
    ctx = Context(samples=samples, activations=OrtActivations())
    result = QuantizeMixed(target="bits:5.5", group=16).run(module, ctx)
    assert result.targets[0].met
    assert result.stats["linear-layers"] == 2
