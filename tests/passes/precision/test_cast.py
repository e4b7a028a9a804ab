"""`cast`: what goes to half precision, what stays, and where conversions stand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regraft.ir.constants import weight
from regraft.ir.errors import CheckError, UsageError
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.types import DType
from regraft.ir.verify import verify
from regraft.ir.weights import ArrayWeight
from regraft.passes.check.samples import Sample
from regraft.passes.manager import CheckMode, PassManager
from regraft.passes.pipeline import format_pass, parse_pipeline
from regraft.passes.precision import PASSES, Cast
from regraft.passes.protocol import Context, PassResult
from tests.passes.cleanup.rewriting import outputs, parse, sample

W = "weight @w : f32[4, 600] role=param = random(1)"
X = "%x : f32[B, S, 4]"


def cast(
    module: Module, scale: float = 1.0, replay: Mapping[str, Any] | None = None, **options: Any
) -> PassResult:
    """Applies the pass with one sample and checks types."""
    inputs = {name: np.asarray(array * scale, array.dtype) if array.dtype.kind == "f" else array
              for name, array in sample(module, {"B": 2, "S": 3, "N": 4}).items()}  # fmt: skip
    ctx = Context(samples=[inputs], replay={"cast": replay or {}})
    result = Cast(**{"dtype": "fp16", **options}).run(module, ctx)
    assert verify(module, "full") == []
    return result


def lowered(body: str, inputs: str = X, head: str = "", **options: Any) -> str:
    module = parse(f"{head}\ngraph({inputs}) {{\n{body}\n}}\n")
    cast(module, **options)
    return outputs(module)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # the interface keeps its type, the conversion pair stands at its ends
        ("%y = tanh(%x)\n%z = sigmoid(%y)\nreturn %z",
         "cast(sigmoid(tanh(cast(x, to=f16))), to=f32)"),
        ("%y = softmax(%x)\nreturn %y", "softmax(x)"),
        # an element-wise node between two that stay in f32 stays with them
        ("%a = exp(%x)\n%b = neg(%a)\n%y = exp(%b)\nreturn %y", "exp(neg(exp(x)))"),
        # data moves in the type that its source has
        ("%a = softmax(%x)\n%y = transpose(%a) {perm = [1, 0, 2]}\nreturn %y",
         "transpose(softmax(x), perm=[1,0,2])"),
        ("%a = tanh(%x)\n%y = transpose(%a) {perm = [1, 0, 2]}\nreturn %y",
         "cast(transpose(tanh(cast(x, to=f16)), perm=[1,0,2]), to=f32)"),
        # small constants are cast in place
        ("%k = literal f32[] 0.5\n%a = tanh(%x)\n%y = mul(%a, %k)\nreturn %y",
         "cast(mul(tanh(cast(x, to=f16)), 0.5), to=f32)"),
        # out of range: the constant, its node, and what only exists around it
        ("%k = literal f32[] -3.4e38\n%a = tanh(%x)\n%y = mul(%a, %k)\nreturn %y",
         "mul(tanh(x), -3.4e+38)"),
        # too small for the type: an epsilon would become zero
        ("%k = literal f32[] 1e-12\n%a = tanh(%x)\n%y = add(%a, %k)\nreturn %y",
         "add(tanh(x), 9.999999960041972e-13)"),
    ],
)  # fmt: skip
def test_placement(body: str, expected: str) -> None:
    assert lowered(body) == expected.replace("-3.4e+38", str(float(np.float32(-3.4e38))))


def test_value_out_of_range_keeps_its_nodes_in_f32() -> None:
    body = "%a = tanh(%x)\n%y = add(%x, %x)\nreturn %a, %y"
    module = parse(f"graph({X}) {{\n{body}\n}}\n")
    result = cast(module, scale=1e5)
    assert outputs(module) == "tanh(x); add(x, x)"
    assert not result.changed
    reasons = {skip.node: skip.reason for skip in result.skipped}
    assert "`%x` reaches" in reasons["y"]
    assert result.decisions == {"kept": ["a", "y"]}


def test_bf16_has_the_range_of_f32() -> None:
    module = parse(f"graph({X}) {{\n%a = add(%x, %x)\n%y = neg(%a)\nreturn %y\n}}\n")
    cast(module, scale=1e5, dtype="bf16")
    assert outputs(module) == "cast(neg(add(cast(x, to=bf16), cast(x, to=bf16))), to=f32)"


def test_recorded_decisions_stand_in_for_the_range_check() -> None:
    module = parse(f"graph({X}) {{\n%a = tanh(%x)\n%b = sin(%a)\n%y = neg(%b)\nreturn %y\n}}\n")
    result = cast(module, replay={"kept": ["y"]})
    assert outputs(module) == "neg(cast(sin(tanh(cast(x, to=f16))), to=f32))"
    assert result.decisions == {"kept": ["y"]}
    assert result.stats["samples"] == 0


def test_each_value_is_converted_once() -> None:
    body = (
        "%h = tanh(%x)\n%a = sin(%h)\n%b = neg(%h)\n%c = softmax(%a)\n%d = exp(%a)\n"
        "return %b, %c, %d"
    )
    module = parse(f"graph({X}) {{\n{body}\n}}\n")
    result = cast(module)
    # x down, a up for both users, b up to the output
    assert result.stats["conversions"] == 3


def test_existing_conversion_is_cancelled() -> None:
    body = "%a = cast(%h) {to = f32}\n%y = tanh(%a)\nreturn %y"
    assert lowered(body, "%h : f16[B]") == "cast(tanh(h), to=f32)"
    body = "%a = tanh(%x)\n%b = sin(%a)\n%y = cast(%b) {to = f16}\nreturn %y"
    assert lowered(body) == "sin(tanh(cast(x, to=f16)))"


def test_integers_convert_straight_to_half() -> None:
    body = "%a = cast(%i) {to = f32}\n%b = tanh(%a)\n%c = sin(%b)\n%s = softmax(%a)\nreturn %c, %s"
    expected = "cast(sin(tanh(cast(i, to=f16))), to=f32); softmax(cast(i, to=f32))"
    assert lowered(body, "%i : i64[B, 4]") == expected


def test_size_arithmetic_stays_in_f32() -> None:
    body = (
        "%s = shape(%x)\n%f = cast(%s) {to = f32}\n%k = literal f32[] 1.5\n%m = mul(%f, %k)\n"
        "%c = floor(%m)\n%n = cast(%c) {to = i64}\n%y = expand(%h, %n)\n%z = tanh(%y)\nreturn %z"
    )
    module = parse(f"graph({X}, %h : f32[1, 1, 1]) {{\n{body}\n}}\n")
    inputs = sample(module, {"B": 2, "S": 3})
    before = evaluate(module, inputs)["z"].shape
    cast(module)
    assert evaluate(module, inputs)["z"].shape == before
    (mul,) = [node for node in module.graph if node.op.name == "mul"]
    assert mul.output.dtype is DType.F32


def test_large_weights_are_stored_in_half_small_ones_of_kept_nodes_are_not() -> None:
    g = "weight @g : f32[600] role=param = random(2)"
    head = f"{W}\n{g}\nweight @s : f32[8] role=param = random(3)"
    body = (
        "%w = weight @w\n%g = weight @g\n%s = weight @s\n%a = matmul(%x, %w)\n%b = pow(%a, %g)\n"
        "%e = exp(%s)\nreturn %b, %e"
    )
    module = parse(f"{head}\ngraph({X}) {{\n{body}\n}}\n")
    cast(module)
    types = {name: module.weights[name].dtype for name in module.weights}
    assert types == {"w": DType.F16, "g": DType.F16, "s": DType.F32}
    source = parse(f"{head}\ngraph({X}) {{\n{body}\n}}\n").weights["w"].numpy()
    np.testing.assert_array_equal(module.weights["w"].numpy(), source.astype(np.float16))


def test_weight_out_of_range_stays() -> None:
    head = "weight @w : f32[4, 600] role=param = splat 7e4"
    module = parse(f"{head}\ngraph({X}) {{\n%w = weight @w\n%y = matmul(%x, %w)\nreturn %y\n}}\n")
    result = cast(module)
    assert module.weights["w"].dtype is DType.F32
    assert "`%w` reaches 7e+04" in result.skipped[-1].reason


@pytest.mark.parametrize("keep", ["matmul", "y", "re:^y$"])
def test_keep_names_operators_values_and_patterns(keep: str) -> None:
    module = parse(f"{W}\ngraph({X}) {{\n%w = weight @w\n%y = matmul(%x, %w)\nreturn %y\n}}\n")
    cast(module, keep=(keep,))
    assert outputs(module) == "matmul(x, @w)"
    assert module.weights["w"].dtype is DType.F32  # kept on purpose: exact


def test_weight_that_is_kept_in_one_place_is_stored_twice() -> None:
    body = "%w = weight @w\n%a = matmul(%x, %w)\n%b = neg(%w)\n%c = tanh(%b)\nreturn %a, %c"
    module = parse(f"{W}\ngraph({X}) {{\n{body}\n}}\n")
    cast(module, keep=("a",))
    names = [node.attrs["name"] for node in module.graph if node.op is weight]
    assert sorted(names) == ["w", "w.f16"]


def test_keep_of_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="`matmull` names no operator and no value") as error:
        lowered("%y = matmul(%x, %x)\nreturn %y", "%x : f32[4, 4]", keep=("matmull",))
    assert error.value.hint == "did you mean `matmul`?"


def test_io_cast_changes_the_interface() -> None:
    module = parse(f"graph({X}) {{\n%y = tanh(%x)\nreturn %y\n}}\n")
    cast(module, io="cast")
    assert outputs(module) == "tanh(x)"
    assert [v.dtype for v in (*module.graph.inputs, *module.graph.outputs)] == [DType.F16] * 2


def test_bodies_keep_what_enters_and_leaves_them() -> None:
    text = (
        "graph(%x : f32[4], %c : bool[]) {\n"
        "%y = if(%c, %x) {num_captures = 1} body(%a : f32[4]) {\n"
        "%t = tanh(%a)\n%u = sigmoid(%t)\nreturn %u\n} body(%b : f32[4]) {\n"
        "%v = softmax(%b)\nreturn %v\n}\nreturn %y\n}\n"
    )
    module = parse(text)
    cast(module)
    branch = next(node for node in module.graph if node.bodies).bodies[0]
    assert outputs(Module(branch)) == "cast(sigmoid(tanh(cast(a, to=f16))), to=f32)"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_contract_measures_rounding(dtype: str) -> None:
    item = Cast(dtype)  # type: ignore[arg-type]  # one of the two
    assert str(item.contract) == f"rounded to {dtype.replace('fp', 'f')}"
    assert str(Cast.contract) == "rounded to its dtype"
    assert parse_pipeline(format_pass(item), PASSES) == [item]


def test_check_each_passes_and_a_wrong_result_fails() -> None:
    body = "%w = weight @w\n%h = matmul(%x, %w)\n%y = softmax(%h)\nreturn %y"
    text = f"{W}\ngraph({X}) {{\n{body}\n}}\n"

    def run(item: Any) -> Any:
        module = parse(text)
        binding = {"B": 2, "S": 3}
        samples = [Sample(sample(module, binding), binding, "normal")]
        ctx = Context(samples=[samples[0].inputs])
        return PassManager(ctx, CheckMode.EACH, samples).run(module, [item])

    assert run(Cast("fp16"))[0].verified == "each"
    with pytest.raises(CheckError, match="changed output `y`"):
        run(_Halved("fp16"))


class _Halved(Cast):
    """Scales a weight by 1.1: far more than rounding."""

    def run(self, module: Module, ctx: Context) -> PassResult:
        result = super().run(module, ctx)
        array = module.weights["w"].numpy()
        module.weights.set("w", ArrayWeight((array * np.float16(1.1)).astype(array.dtype)))
        return result
