"""The pass `quantize` on a small network, judged by the evaluator and by ONNX Runtime."""

import numpy as np
import pytest

import regraft
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

WIDTH, HIDDEN = 48, 80

TEXT = f"""
module "net"
symbol B
weight @table : f32[30, {WIDTH}] = random(1)
weight @up : f32[{WIDTH}, {HIDDEN}] = random(2)
weight @bias : f32[{HIDDEN}] = random(3)
weight @down : f32[{HIDDEN}, {WIDTH}] = random(4)

graph(%ids : i64[B]) {{
  %table = weight @table
  %up = weight @up
  %bias = weight @bias
  %down = weight @down
  %x = gather(%table, %ids) {{axis = 0}}
  %h = matmul(%x, %up)
  %s = add(%h, %bias)
  %a = relu(%s)
  %y = matmul(%a, %down)
  return %y
}}
"""


def network():
    return parse_module(TEXT)


def samples(count=24):
    rng = np.random.default_rng(5)
    return [{"ids": rng.integers(0, 30, 8)} for _ in range(count)]


def context():
    return Context(
        samples=samples(), activations=OrtActivations(), legalizers=legalizers(), target="ort-cpu"
    )


def relative_error(module, reference):
    total = scale = 0.0
    for sample in samples():
        want = next(iter(evaluate(reference, sample).values()))
        got = next(iter(evaluate(module, sample).values()))
        total += float(np.square(got - want).sum())
        scale += float(np.square(want).sum())
    return (total / scale) ** 0.5


def ops(module):
    return [node.op.name for node in module.graph]


def test_weights_alone_in_8_bits_are_stored_as_their_kernel_reads_them():
    module = network()
    Quantize(activations="none").run(module, context())
    Legalize().run(module, context())
    kinds = [node.op_type for node in to_proto(module, profile="ort-cpu").graph.node]
    # a matrix that ONNX Runtime would rewrite to it does not say that inputs are rounded
    assert kinds.count("MatMulNBits") == 2


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        # half a step of 8 bits over three roundings (table, weights, inputs): a hundredth
        ({"activations": "token"}, 0.015),
        ({"activations": "static"}, 0.02),
        ({"activations": "dynamic"}, 0.02),
        ({"activations": "none"}, 0.015),
        ({"weights": "uint4"}, 0.12),
        ({"weights": "int4", "method": "round"}, 0.2),
    ],
    ids=str,
)
def test_outputs_stay_within_the_rounding(options, bound):
    module, reference = network(), network()
    result = Quantize(**options).run(module, context())
    assert result.changed
    assert result.stats["linear-layers"] == 2
    assert 1e-4 < relative_error(module, reference) < bound


@pytest.mark.parametrize(
    "options",
    [{"activations": mode} for mode in ("token", "static", "dynamic", "none")]
    + [{"weights": w} for w in ("uint4", "int4", "uint2")],
    ids=str,
)
def test_onnx_runtime_computes_what_the_module_says(options):
    module = network()
    ctx = context()
    Quantize(**options).run(module, ctx)
    want = [evaluate(module, sample) for sample in samples(3)]
    Legalize("ort-cpu").run(module, ctx)
    assert "dequantize" not in ops(module) or options == {"activations": "none"}
    runner = OrtRunner(to_proto(module, profile="ort-cpu"))
    for sample, expected in zip(samples(3), want, strict=True):
        for name, array in runner(sample).items():
            # its kernels below 8 bits round the inputs to 8 bits, per block
            bound = 2e-2 if "weights" in options or options == {"activations": "none"} else 1e-5
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=bound * scale)


@pytest.mark.parametrize("mode", ["token", "static"])
def test_rows_do_not_depend_on_the_batch(mode):
    module = network()
    Quantize(activations=mode).run(module, context())
    ids = np.arange(20)
    together = next(iter(evaluate(module, {"ids": ids}).values()))
    alone = [next(iter(evaluate(module, {"ids": ids[i : i + 1]}).values())) for i in ids]
    # products of floats are summed in another order; another range would be a hundredth
    bound = 1e-6 * float(np.abs(together).max())
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=0, atol=bound)


def test_channels_of_the_tail_stay_in_float():
    plain, tailed, reference = network(), network(), network()
    for module in (plain, tailed, reference):
        table = module.weights["table"].numpy().copy()
        table[:, 7] *= 60
        module.weights.set("table", ArrayWeight(table))
    Quantize(activations="token", tail=0, embeddings="none").run(plain, context())
    Quantize(activations="token", tail=1, embeddings="none").run(tailed, context())
    assert relative_error(tailed, reference) < 0.6 * relative_error(plain, reference)


def test_kept_weights_stay_in_float():
    module = network()
    result = Quantize(keep=("down", "table")).run(module, context())
    assert result.stats == {**result.stats, "linear-layers": 1, "tables": 0}
    assert [skip.node for skip in result.skipped] == ["down", "table"]
    assert "down" in module.weights


def test_without_samples_rows_have_their_own_range():
    module, reference = network(), network()
    Quantize().run(module, Context())
    assert relative_error(module, reference) < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int9"}, "there is no format `int9`"),
        ({"weights": "uint4", "activations": "static"}, "needs 8-bit weights"),
        ({"weights": "uint8"}, "has no kernel"),
        ({"smooth": 2.0}, "not in 0 to 1"),
        ({"activations": "static"}, "needs samples"),
        ({"weights": "uint4", "method": "gptq"}, "needs samples"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        Quantize(**options).run(network(), Context())


def test_the_size_falls():
    module = network()
    before = sum(module.weights[name].nbytes for name in module.weights)
    regraft.apply(module, [Quantize(weights="uint4", method="round")], check="off")
    after = sum(module.weights[name].nbytes for name in module.weights)
    assert after < 0.35 * before


CHAIN = """
module "chain"
symbol B
weight @first : f32[32, 32] = random(1)
weight @second : f32[32, 32] = random(2)
weight @bias : f32[32] = random(3)

graph(%x : f32[B, 32]) {
  %first = weight @first
  %second = weight @second
  %bias = weight @bias
  %h = matmul(%x, %first)
  %y = matmul(%h, %second)
  %z = add(%y, %bias)
  return %z
}
"""


@pytest.mark.parametrize(
    "options", [{"activations": "static"}, {"activations": "token"}, {"weights": "uint4"}], ids=str
)
def test_a_layer_that_reads_a_rewritten_one_reads_the_new_result(options):
    module, reference = parse_module(CHAIN), parse_module(CHAIN)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(16, 32)).astype(np.float32)} for _ in range(8)]
    ctx = Context(samples=feeds, activations=OrtActivations())
    Quantize(**options).run(module, ctx)
    assert "first" not in module.weights
    want, got = (evaluate(each, feeds[0])["z"] for each in (reference, module))
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 0.2


def test_a_bias_and_the_correction_are_one_addition():
    module = parse_module(CHAIN)
    feeds = [{"x": np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)}]
    Quantize(activations="static").run(module, Context(samples=feeds, activations=OrtActivations()))
    # one for the layer without a bias, one for the layer with one
    assert ops(module).count("add") == 2


def test_what_earlier_layers_shift_is_taken_back():
    """Outputs are right on average over the samples, though two layers round on the way."""
    module, reference = network(), network()
    Quantize(weights="uint2", embeddings="none").run(module, context())
    pairs = [
        [next(iter(evaluate(each, sample).values())) for each in (module, reference)]
        for sample in samples()
    ]
    got, want = (np.concatenate(part).mean(0) for part in zip(*pairs, strict=True))
    spread = np.concatenate([pair[1] for pair in pairs]).std(0)
    # sums of f32 in another order: far below the hundredth of a deviation
    assert (np.abs(got - want) < 1e-2 * spread).all()


def test_layers_are_reported_the_worst_first():
    result = Quantize(weights="uint4").run(network(), context())
    assert {layer.name for layer in result.layers} == {"up", "down", "table"}
    assert result.layers[0].error >= result.layers[1].error > 0
    up = next(layer for layer in result.layers if layer.name == "up")
    groups = -(-WIDTH // 32)
    # half a byte per code, a scale of four bytes and half a byte of zero point per group
    assert up.num_bytes == WIDTH * HIDDEN // 2 + groups * HIDDEN * 4 + groups * HIDDEN // 2
    assert up.bytes_to_keep == 4 * WIDTH * HIDDEN - up.num_bytes
    table = next(layer for layer in result.layers if layer.name == "table")
    # codes of 8 bits of a normal distribution: a step is its largest number over 127
    assert 0 < table.error < 0.02
    assert not table.of_results


def test_generated_samples_are_said_aloud():
    module = network()
    Quantize(activations="static").run(
        module, Context(probes=samples(3), activations=OrtActivations())
    )
    assert any("3 synthetic samples" in text for text in module.warnings)
