"""Folding of batch normalization and constant scales, against f64 and around its guards."""

import tracemalloc

import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.origins import Relation, origins_of
from regraft.ir.rebind import rebind
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup import Canonicalize, FoldNorms
from regraft.passes.protocol import Context
from tests.passes.cleanup.rewriting import BINDINGS, outputs, parse, run, sample

PASSES = (FoldNorms(), Canonicalize())
STATISTICS = """
weight @scale : f32[6] role=param = random(11)
weight @shift : f32[6] role=param = random(12)
weight @mean : f32[6] role=buffer = random(13)
weight @var : f32[6] role=buffer = [0.5, 2, 1, 3, 0.25, 1.5]
"""
READ = """
%scale = weight @scale
%shift = weight @shift
%mean = weight @mean
%var = weight @var
"""
PLAIN = "strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]"
BARE = "strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]"
NORM = "%y = batch_norm(%c, %scale, %shift, %mean, %var) {epsilon = 0.01}"


def _module(body: str, weights: str, inputs: str = "%x : f32[B, 4, 5, 5]") -> Module:
    return parse(f"{STATISTICS}{weights}\ngraph({inputs}) {{{READ}{body}\nreturn %y\n}}")


@pytest.mark.parametrize(
    ("weights", "conv"),
    [
        ("weight @w : f32[6, 4, 3, 3] role=param = random(1)", f"conv(%x, %w) {{{PLAIN}}}"),
        (
            ("weight @w : f32[6, 4, 3, 3] role=param = random(1)\n"
            "weight @b : f32[6] role=param = random(2)"),
            f"conv(%x, %w, %b) {{{PLAIN}}}",
        ),
        ("weight @w : f32[6, 2, 3, 3] role=param = random(1)",
         f"conv(%x, %w) {{{PLAIN}, groups = 2}}"),
        ("weight @w : f32[4, 6, 3, 3] role=param = random(1)",
         f"conv_transpose(%x, %w) {{{PLAIN}, output_padding = [0, 0]}}"),
        ("weight @w : f32[4, 3, 3, 3] role=param = random(1)",
         f"conv_transpose(%x, %w) {{{PLAIN}, output_padding = [0, 0], groups = 2}}"),
    ],
)  # fmt: skip
def test_batch_norm_folds_into_convolution(weights: str, conv: str) -> None:
    reads = "%w = weight @w\n" + ("%b = weight @b\n" if "@b" in weights else "")
    module = _module(f"{reads}%c = {conv}\n{NORM}", weights)
    run(module, PASSES)
    op = conv.partition("(")[0]
    assert outputs(module).startswith(f"{op}(x, @w.folded, ")
    assert [node.op.name for node in module.graph].count(op) == 1
    assert "batch_norm" not in outputs(module)
    assert {module.weights.role(name) for name in module.weights} == {Role.PARAM}


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_folded_weights_are_steps_of_the_checkpoint(follows: bool, groups: int) -> None:
    num_out, num_in = (4, 6) if follows else (6, 4)
    weights = (
        f"weight @w : f32[{num_out}, {num_in // groups}, 3, 3] role=param = random(1)\n"
        f"weight @b : f32[{num_out}] role=param = random(2)"
    )
    conv = f"conv({'%n' if follows else '%x'}, %w, %b) {{{BARE}, groups = {groups}}}"
    body = f"%c = {conv}\n{NORM}"
    if follows:
        body = f"%n = batch_norm(%x, %scale, %shift, %mean, %var)\n%y = {conv}"
    module = _module(
        f"%w = weight @w\n%b = weight @b\n{body}", weights, f"%x : f32[B, {num_in}, 5, 5]"
    )
    source = module.clone()
    run(module, PASSES)
    assert sorted(module.weights) == ["w.bias", "w.folded"]
    folded = module.weights["w.folded"]
    assert isinstance(folded, DerivedWeight)
    origins = {origin.source: origin for origin in origins_of(folded.tree)}
    assert set(origins) == {"w", "scale", "var"}
    assert {origin.relation for origin in origins.values()} == {Relation.POSITIONS}
    np.testing.assert_array_equal(origins["w"].positions, np.arange(folded.nbytes // 4))
    channels = origins["scale"].positions.reshape(folded.shape)
    for g in range(groups) if follows else ():
        part = np.arange(num_in // groups) + g * num_in // groups
        rows = channels[g * num_out // groups : (g + 1) * num_out // groups, :, 1, 1]
        np.testing.assert_array_equal(rows, np.broadcast_to(part, rows.shape))
    if not follows:
        np.testing.assert_array_equal(channels[:, 0, 1, 1], np.arange(6))
    bias = module.weights["w.bias"]
    assert isinstance(bias, DerivedWeight)
    assert "b" in source_names("w.bias", bias)

    # new values of the checkpoint: the folded module computes what the source does with them
    rng = np.random.default_rng(0)
    new = {
        name: ArrayWeight(rng.uniform(0.5, 2, source.weights[name].shape).astype(np.float32))
        for name in source.weights
    }
    assert rebind(source.weights, new) == list(source.weights)
    rebind(module.weights, new)
    inputs = sample(module, BINDINGS[0])
    exact = evaluate(source, inputs, oracle=True)["y"]
    noise = np.abs(evaluate(source, inputs)["y"] - exact).max()
    assert np.abs(evaluate(module, inputs)["y"] - exact).max() <= 4 * noise


def test_folding_holds_no_copy_of_a_weight() -> None:
    weights = "weight @w : f32[6, 50000, 3, 3] role=param = splat 1"
    body = f"%w = weight @w\n%c = conv(%x, %w) {{{PLAIN}}}\n{NORM}"
    module = _module(body, weights, "%x : f32[B, 50000, 5, 5]")
    array = np.ones(module.weights["w"].shape, np.float32)
    module.weights.set("w", ArrayWeight(array))
    tracemalloc.start()
    assert FoldNorms().run(module, Context()).changed
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 20, f"{peak} bytes for a weight of {array.nbytes}"


def test_depthwise_convolution() -> None:
    weights = "weight @w : f32[6, 1, 3, 3] role=param = random(1)"
    body = f"%w = weight @w\n%c = conv(%x, %w) {{{PLAIN}, groups = 6}}\n{NORM}"
    module = _module(body, weights, "%x : f32[B, 6, 5, 5]")
    run(module, PASSES)
    assert outputs(module).startswith("conv(x, @w.folded, @w.bias, ")


@pytest.mark.parametrize(
    ("gemm", "expected"),
    [
        ("gemm(%x, %w) {alpha = 0.5}", "gemm(x, @w.folded, "),
        ("gemm(%x, %w, %shift) {beta = 2.0}", "gemm(x, @w.folded, "),
        ("matmul(%x, %w)", "add(matmul(x, @w.folded), "),
    ],
)
def test_batch_norm_folds_into_matrix_product(gemm: str, expected: str) -> None:
    weights = "weight @w : f32[4, 6] role=param = random(1)"
    module = _module(f"%w = weight @w\n%c = {gemm}\n{NORM}", weights, "%x : f32[B, 4]")
    run(module, PASSES)
    assert outputs(module).startswith(expected)


def test_transposed_gemm() -> None:
    weights = "weight @w : f32[6, 4] role=param = random(1)"
    body = f"%w = weight @w\n%c = gemm(%x, %w) {{trans_b = true}}\n{NORM}"
    module = _module(body, weights, "%x : f32[B, 4]")
    run(module, PASSES)
    assert outputs(module).startswith("gemm(x, @w.folded, ")


def test_fold_rounds_once() -> None:
    weights = "weight @w : f32[6, 4, 3, 3] role=param = random(1)"
    body = (
        f"%w = weight @w\n%a = conv(%x, %w) {{{PLAIN}}}\n%k = literal f32[6, 1, 1] splat 0.3\n"
        "%m = mul(%a, %k)\n%q = literal f32[] 1.7\n%n = div(%m, %q)\n%c = add(%n, %k)\n" + NORM
    )
    module = _module(body, weights)
    source = module.clone()
    run(module, PASSES)
    w = source.weights["w"].numpy().astype(np.float64)
    scale, var = (source.weights[n].numpy().astype(np.float64) for n in ("scale", "var"))
    factor = np.float64(np.float32(0.3)) / np.float64(np.float32(1.7)) * scale / np.sqrt(var + 0.01)
    folded = module.weights["w.folded"].numpy()
    np.testing.assert_array_equal(folded, (w * factor[:, None, None, None]).astype(np.float32))
    for binding in BINDINGS:
        inputs = sample(module, binding)
        exact = evaluate(source, inputs, oracle=True)["y"]
        noise = np.abs(evaluate(source, inputs)["y"] - exact).max()
        assert np.abs(evaluate(module, inputs)["y"] - exact).max() <= 4 * noise


@pytest.mark.parametrize(
    ("pads", "folds"), [("[0, 0, 0, 0]", True), ("[1, 1, 1, 1]", False)]
)  # padded zeros would be shifted
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_into_following_convolution(pads: str, folds: bool, groups: int) -> None:
    weights = f"weight @w : f32[4, {6 // groups}, 3, 3] role=param = random(1)"
    body = (
        "%w = weight @w\n%n = batch_norm(%x, %scale, %shift, %mean, %var)\n%y = conv(%n, %w) "
        f"{{strides = [1, 1], dilations = [1, 1], pads = {pads}, groups = {groups}}}"
    )
    module = _module(body, weights, "%x : f32[B, 6, 5, 5]")
    (result, _) = run(module, PASSES)
    assert ("batch_norm" not in outputs(module)) == folds
    reasons = [skip.reason for skip in result.skipped]
    assert reasons == ([] if folds else ["no convolution or matrix product comes before it"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ((f"%c = conv(%x, %w) {{{BARE}}}\n%r = relu(%c)\n%n = batch_norm(%c, %scale, %shift, %mean,"
         " %var)\n%q = reduce_sum(%r)\n%y = add(%n, %q)"),
         "the result it normalizes is used elsewhere"),
        ((f"%c = conv(%x, %w) {{{BARE}}}\n%o = conv(%x, %w) {{{PLAIN}}}\n%q = reduce_sum(%o)\n"
         "%n = batch_norm(%c, %scale, %shift, %mean, %var)\n%y = add(%n, %q)"),
         "the weight is shared"),
        ((f"%v = exp(%x)\n%u = reduce_sum(%v)\n%k = mul(%w, %u)\n%c = conv(%x, %k) {{{BARE}}}\n"
         "%y = batch_norm(%c, %scale, %shift, %mean, %var)"), "the weight is not constant"),
        ((f"%c = conv(%x, %w) {{{BARE}}}\n%m = reduce_sum(%x) {{keepdims = false}}\n"
         "%u = expand(%m) {shape = [6]}\n"
         "%y = batch_norm(%c, %scale, %u, %mean, %var)"), "`bias` is not constant"),
        ("%c = relu(%z)\n%y = batch_norm(%c, %scale, %shift, %mean, %var)",
         "no convolution or matrix product comes before it"),
    ],
)  # fmt: skip
def test_batch_norm_that_stays_says_why(body: str, reason: str) -> None:
    weights = "weight @w : f32[6, 4, 3, 3] role=param = random(1)"
    inputs = "%x : f32[1, 4, 5, 5], %z : f32[B, 6, 5, 5]"
    module = _module(f"%w = weight @w\n{body}", weights, inputs)
    result = FoldNorms().run(module, Context())
    assert [skip.reason for skip in result.skipped] == [reason]


@pytest.mark.parametrize("op", ["gemm", "matmul"])
def test_scale_behind_a_projection_stays(op: str) -> None:
    module = parse(
        "weight @w : f32[3, 4] role=param = random(1)\ngraph(%x : f32[B, 3]) {\n"
        f"%w = weight @w\n%k = literal f32[] 0.5\n%m = {op}(%x, %w)\n%y = mul(%m, %k)\n"
        "return %y\n}"
    )
    assert not FoldNorms().run(module, Context()).changed


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("gemm(%x, %w)", "gemm(x, @w, @w.bias)"),
        ("gemm(%x, %w, %k) {beta = 2.0}", "gemm(x, @w, @w.bias)"),
        ("gemm(%x, %w) {alpha = 2.0}", "gemm(x, @w.folded, @w.bias)"),
    ],
)
def test_bias_alone_leaves_the_weight_and_its_name(op: str, expected: str) -> None:
    module = parse(
        "weight @w : f32[3, 4] role=param = random(1)\ngraph(%x : f32[B, 3]) {\n"
        f"%w = weight @w\n%k = literal f32[4] [1, 2, 3, 4]\n%m = {op}\n%y = add(%m, %k)\n"
        "return %y\n}"
    )
    run(module, PASSES)
    assert outputs(module) == expected


def test_overflow_is_not_folded() -> None:
    text = """
weight @w : f16[2, 1, 1, 1] role=param = splat 60000
graph(%x : f16[B, 1, 3, 3]) {
%w = weight @w
%c = conv(%x, %w) {strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]}
%k = literal f16[] 2
%y = mul(%c, %k)
return %y
}"""
    module = parse(text)
    ctx = Context(explain="fold-into-producer")
    assert not FoldNorms().run(module, ctx).changed
    assert "leaves the range of f16" in ctx.explanations[0]


def test_overflow_is_not_folded_into_the_following_convolution() -> None:
    text = f"""
weight @w : f16[2, 2, 1, 1] role=param = splat 300
graph(%x : f16[B, 2, 3, 3]) {{
%w = weight @w
%s = literal f16[2] [300, 1]
%z = literal f16[2] [0, 0]
%o = literal f16[2] [1, 1]
%n = batch_norm(%x, %s, %z, %z, %o)
%y = conv(%n, %w) {{{BARE}}}
return %y
}}"""
    ctx = Context(explain="fold-into-consumer")
    assert not FoldNorms().run(parse(text), ctx).changed
    assert "leaves the range of f16" in ctx.explanations[0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (("%a = literal f32[] 3\n%b = literal f32[4] [1, 2, 3, 4]\n%m = mul(%x, %a)\n"
         "%y = mul(%m, %b)"), "mul(x, [3.0,6.0,9.0,12.0])"),
        (("%a = literal f32[] 3\n%b = literal f32[] 2\n%m = add(%x, %a)\n%n = mul(%m, %b)\n"
         "%y = sub(%n, %a)"), "add(mul(x, 2.0), 3.0)"),
        ("%a = literal f32[] 3\n%m = add(%x, %a)\n%y = sub(%m, %a)", "x"),
        # a gain and a shift are already as few as can be
        ("%a = literal f32[] 3\n%m = mul(%x, %a)\n%y = add(%m, %a)", "add(mul(x, 3.0), 3.0)"),
        ("%a = literal f32[] 3\n%m = div(%a, %x)\n%y = mul(%m, %a)", "mul(div(3.0, x), 3.0)"),
        # the joined constant would overflow, or be zero
        ("%a = literal f32[] 1e30\n%m = mul(%x, %a)\n%y = mul(%m, %a)",
         "mul(mul(x, 1.0000000150474662e+30), 1.0000000150474662e+30)"),
        ("%a = literal f32[] 1e-30\n%m = mul(%x, %a)\n%y = mul(%m, %a)",
         "mul(mul(x, 1.0000000031710769e-30), 1.0000000031710769e-30)"),
        # this is how some graphs round to whole numbers
        ("%a = literal f32[] 12582912\n%m = add(%x, %a)\n%y = sub(%m, %a)",
         "sub(add(x, 12582912.0), 12582912.0)"),
        # scales along different axes
        (("%a = literal f32[4] [1, 2, 3, 4]\n%b = literal f32[3, 1] [1, 2, 3]\n%m = mul(%x, %a)\n"
         "%y = mul(%m, %b)"), "mul(mul(x, [1.0,2.0,3.0,4.0]), [[1.0],[2.0],[3.0]])"),
    ],
)  # fmt: skip
def test_constants_join(body: str, expected: str) -> None:
    module = parse(f"graph(%x : f32[B, 3, 4]) {{\n{body}\nreturn %y\n}}")
    run(module, PASSES)
    assert outputs(module) == expected


def test_value_used_twice_is_not_joined() -> None:
    module = parse(
        "graph(%x : f32[B, 3]) {\n%a = literal f32[] 3\n%m = mul(%x, %a)\n%y = mul(%m, %a)\n"
        "return %y, %m\n}"
    )
    run(module, PASSES)
    assert outputs(module) == "mul(mul(x, 3.0), 3.0); mul(x, 3.0)"


def test_matmul_and_its_bias_stay() -> None:
    module = parse(
        "weight @w : f32[3, 4] role=param = random(1)\nweight @b : f32[4] role=param = random(2)\n"
        "graph(%x : f32[B, 3]) {\n%w = weight @w\n%b = weight @b\n%m = matmul(%x, %w)\n"
        "%y = add(%m, %b)\nreturn %y\n}"
    )
    assert not FoldNorms().run(module, Context()).changed
