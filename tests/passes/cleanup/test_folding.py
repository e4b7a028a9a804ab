"""Constant folding: values, sizes, parameters as derived weights, limits."""

from collections.abc import Callable

import numpy as np
import pytest

from regraft.ir.derive import DerivedWeight, derive, source_names
from regraft.ir.evaluate import evaluate
from regraft.ir.origins import origins_of
from regraft.ir.weights import Role
from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context
from tests.passes.cleanup.rewriting import canonical, outputs, parse, run

W = "weight @w : f32[4, 6] role=param = random(1)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%a = literal f32[2] [1, 2]\n%b = literal f32[2] [3, 4]\n%y = add(%a, %b)", "[4.0,6.0]"),
        ("%a = literal f32[2] [1, 4]\n%b = sqrt(%a)\n%c = neg(%b)\n%y = mul(%x, %c)",
         "mul(x, [-1.0,-2.0])"),
        ("%a = literal i64[3] [1, 2, 3]\n%y = slice(%a) {starts = [1], ends = [3]}", "[2,3]"),
        ("%y = constant_of_shape() {shape = [2], value = f32[1] [7]}", "[7.0,7.0]"),
        # its size is known only at run time
        ("%y = constant_of_shape() {shape = [B], value = f32[1] [7]}",
         "constant_of_shape(shape=[B], value=[7.])"),
        ("%y = random_normal() {shape = [2], dtype = f32, seed = 1.0}",
         "random_normal(seed=1.0, shape=[2])"),
        (("%a = literal i8[2] [1, 2]\n%s = literal f32[] 0.5\n"
          "%d = dequantize(%a, %s)\n%y = add(%x, %d)"),
         "add(x, dequantize([1,2], 0.5))"),
    ],
)  # fmt: skip
def test_fold(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", "%x : f32[B, 2]") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%s = shape(%x)\n%i = literal i64[] 1\n%y = gather(%s, %i)", "3"),
        ("%s = shape(%x)\n%i = literal i64[] 0\n%y = gather(%s, %i)",
         "gather(shape(x), 0)"),
        (("%s = shape(%x)\n%i = literal i64[] 0\n%a = gather(%s, %i)\n"
         "%z = literal i64[1] [0]\n%u = unsqueeze(%a, %z)\n%k = literal i64[1] [12]\n"
         "%c = concat(%u, %k) {axis = 0}\n%y = reshape(%x, %c)"), "reshape(x, shape=[B,12])"),
        (("%n = size(%x)\n%k = literal i64[] 12\n%q = div(%n, %k)\n%k2 = literal i64[1] [4]\n"
         "%i = literal i64[1] [0]\n%u = unsqueeze(%q, %i)\n%m = literal i64[1] [-1]\n"
         "%c = concat(%u, %m) {axis = 0}\n%y = reshape(%x, %c)"), "reshape(x, shape=[B,12])"),
    ],
)  # fmt: skip
def test_sizes(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", "%x : f32[B, 3, 4]") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%k = literal i64[2] [0, 2]\n%y = reduce_sum(%x, %k)", "reduce_sum(x, axes=[0,2])"),
        ("%a = literal f32[] 0\n%b = literal f32[] 6\n%y = clip(%x, %a, %b)",
         "clip(x, max=6.0, min=0.0)"),
        ("%k = literal i64[3] [2, 1, 1]\n%y = tile(%x, %k)", "tile(x, repeats=[2,1,1])"),
        ("%k = literal i64[6] [0, 1, 0, 0, 0, 0]\n%y = pad(%x, %k)", "pad(x, pads=[0,1,0,0,0,0])"),
        ("%s = shape(%x)\n%k = literal f32[] 2\n%y = expand(%k, %s)", "expand(2.0, shape=[B,3,4])"),
        (("%a = literal i64[] 0\n%b = literal i64[] 5\n%c = literal i64[] 2\n"
          "%r = range(%a, %b, %c)\n"
         "%f = cast(%r) {to = f32}\n%y = reduce_sum(%f)"), "[6.0]"),
        ("%y = pad(%x, %p)", "pad(x, p)"),
    ],
)  # fmt: skip
def test_operand_becomes_attribute(body: str, expected: str) -> None:
    inputs = "%x : f32[B, 3, 4]"
    if "%p" in body:
        module = parse(f"graph({inputs}, %p : i64[6]) {{\n{body}\nreturn %y\n}}")
        Canonicalize().run(module, Context())
        assert outputs(module) == expected
        return
    assert canonical(f"{body}\nreturn %y", inputs) == expected


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("transpose(%w) {perm = [1, 0]}", "transpose"),
        ("reshape(%w) {shape = [6, 4]}", "reshape"),
        ("cast(%w) {to = f16}", "cast"),
        ("slice(%w) {starts = [1], ends = [3], axes = [0]}", "slice"),
        ("gather(%w, %i) {axis = 1}", "gather"),
        ("concat(%w, %w) {axis = 0}", "concat"),
        ("split(%w) {axis = 1, sizes = [6]}", None),
    ],
)
def test_moved_parameter_becomes_a_derived_weight(op: str, name: str | None) -> None:
    text = f"{W}\ngraph() {{\n%w = weight @w\n%i = literal i64[2] [5, -1]\n%y = {op}\nreturn %y\n}}"
    module = parse(text)
    run(module)
    stored = next(iter(module.weights))
    assert module.weights.role(stored) is Role.PARAM
    if name is None:
        assert outputs(module) == "@w"
        return
    assert outputs(module) == f"@w.{name}"
    assert isinstance(module.weights[stored], DerivedWeight)


def test_split_parameter_becomes_one_derived_weight_per_part() -> None:
    text = (
        f"{W}\ngraph() {{\n%w = weight @w\n"
        "%a, %b = split(%w) {axis = 1, sizes = [2, 4]}\nreturn %a, %b\n}"
    )
    module = parse(text)
    run(module)
    assert outputs(module) == "@w.split; @w.split.1"
    assert [module.weights[name].shape for name in module.weights] == [(4, 2), (4, 4)]


def test_computation_of_parameters_gives_a_parameter() -> None:
    text = f"{W}\ngraph() {{\n%w = weight @w\n%y = mul(%w, %w)\nreturn %y\n}}"
    module = parse(text)
    run(module)
    assert [module.weights.role(name) for name in module.weights] == [Role.PARAM]
    expected = parse(text).weights["w"].numpy() ** 2
    np.testing.assert_array_equal(module.weights[next(iter(module.weights))].numpy(), expected)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("mul(%w, %v)", lambda w, v: w * v),
        ("add(%k, %w)", lambda w, v: np.float32(0.3) + w),
        ("sub(%w, %v)", lambda w, v: w - v),
        ("div(%w, %k)", lambda w, v: w / np.float32(0.3)),
        ("neg(%w)", lambda w, v: -w),
        ("sqrt(%w)", lambda w, v: np.sqrt(w)),
        ("matmul(%w, %t)", lambda w, v: w @ w.T),
        ("concat(%k1, %w) {axis = 0}", lambda w, v: np.concatenate([np.ones((1, 6), "f4"), w])),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
def test_arithmetic_of_parameters_is_recorded(
    op: str, expected: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    module = parse(
        f"{W}\nweight @v : f32[4, 6] role=param = random(2)\ngraph() {{\n%w = weight @w\n"
        "%v = weight @v\n%k = literal f32[] 0.3\n%k1 = literal f32[1, 6] splat 1\n"
        f"%t = transpose(%w)\n%y = {op}\nreturn %y\n}}"
    )
    w, v = (module.weights[name].numpy() for name in "wv")
    run(module)
    (stored,) = module.weights
    derived = module.weights[stored]
    assert isinstance(derived, DerivedWeight)
    np.testing.assert_array_equal(derived.numpy(), expected(w, v))


def test_other_operators_of_parameters_name_what_they_were_made_from() -> None:
    module = parse(f"{W}\ngraph() {{\n%w = weight @w\n%v = neg(%w)\n%y = exp(%v)\nreturn %y\n}}")
    run(module)
    (stored,) = module.weights
    assert source_names(stored, module.weights[stored]) == ["w"]


def test_parameters_stay_when_asked() -> None:
    text = f"{W}\ngraph() {{\n%w = weight @w\n%y = transpose(%w)\nreturn %y\n}}"
    module = parse(text)
    Canonicalize(fold_params=False).run(module, Context())
    assert outputs(module) == "transpose(@w, perm=[1,0])"


@pytest.mark.parametrize(("limit", "folds"), [(4 * 1000, True), (4 * 1000 - 1, False)])
def test_fold_limit_counts_the_result(limit: int, folds: bool) -> None:
    text = "graph() {\n%k = literal f32[] 3\n%y = expand(%k) {shape = [1000]}\nreturn %y\n}"
    module = parse(text)
    ctx = Context(explain="fold-constants")
    Canonicalize(max_fold_bytes=limit).run(module, ctx)
    assert (outputs(module) != "expand(3.0, shape=[1000])") == folds
    assert ("the result takes 4000 bytes" in "".join(ctx.explanations)) != folds


def test_widened_weight_stays_computed() -> None:
    text = (
        "weight @q : i8[1024, 600] role=param = splat 3\n"
        "graph() {\n%q = weight @q\n%y = cast(%q) {to = f32}\nreturn %y\n}"
    )
    module = parse(text)
    Canonicalize().run(module, Context())
    assert outputs(module) == "cast(@q, to=f32)"


def test_operator_that_fails_on_its_operands_is_left_to_the_runtime() -> None:
    module = parse(
        "graph() {\n%a = literal f32[3] [1, 2, 3]\n%i = literal i64[1] [7]\n"
        "%y = gather_elements(%a, %i) {axis = 0}\nreturn %y\n}"
    )
    assert not Canonicalize().run(module, Context()).changed
    assert outputs(module) == "gather_elements([1.0,2.0,3.0], [7])"


def test_norm_without_its_statistics_is_folded() -> None:
    """The evaluation gives mean and inverse deviation too, which the node does not have."""
    module = parse(
        "weight @w : f32[2, 4] role=param = random(1)\nweight @g : f32[4] role=param = random(2)\n"
        "graph(%x : f32[2, 4]) {\n  %w = weight @w\n  %g = weight @g\n  %n = layer_norm(%w, %g)\n"
        "  %y = add(%x, %n)\n  return %y\n}"
    )
    Canonicalize().run(module, Context())
    assert [node.op.name for node in module.graph] == ["weight", "add"]


def test_parameter_gathered_out_of_range_is_left_to_the_runtime() -> None:
    module = parse(
        f"{W}\ngraph() {{\n%w = weight @w\n%i = literal i64[2] [-4, 4]\n"
        "%y = gather(%w, %i) {axis = 0}\nreturn %y\n}"
    )
    assert not Canonicalize().run(module, Context()).changed
    assert outputs(module) == "gather(@w, [-4,4])"


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_question_whether_a_batch_is_empty_stays(batch: int) -> None:
    module = parse(
        "graph(%x : f32[B, 2]) {\n%n = size(%x)\n%z = literal i64[] 0\n%c = greater(%n, %z)\n"
        "%one = literal i64[] 1\n%m = max(%n, %one)\n%f = cast(%m) {to = f32}\n"
        "%s = reduce_sum(%x) {axes = [0, 1], keepdims = false}\n%q = div(%s, %f)\n"
        "%e = literal f32[] 7\n%y = where(%c, %q, %e)\nreturn %y\n}"
    )
    source = module.clone()
    run(module)
    inputs = {"x": np.ones((batch, 2), np.float32)}
    expected = 1.0 if batch else 7.0
    assert evaluate(source, inputs)["y"] == evaluate(module, inputs)["y"] == expected


@pytest.mark.parametrize(
    ("op", "steps"),
    [
        ("gather(%w, %i) {axis = 0}", "f32[2, 3, 6]"),
        ("expand(%w) {shape = [5, 4, 6]}", "f32[5, 4, 6]"),
    ],
)
def test_parameter_that_is_repeated_keeps_its_origin(op: str, steps: str) -> None:
    module = parse(
        f"{W}\ngraph() {{\n%w = weight @w\n%i = literal i64[2, 3] [3, 0, 0, 1, 2, 1]\n"
        f"%y = {op}\nreturn %y\n}}"
    )
    expected = evaluate(module, {})["y"]
    run(module)
    (name,) = module.weights
    folded = module.weights[name]
    assert f"{folded}".startswith(f"<derived {steps}>")
    assert [origin.source for origin in origins_of(derive(name, folded))] == ["w"]
    assert np.array_equal(folded.numpy(), expected)
