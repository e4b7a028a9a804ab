"""Pattern rules: binding, commutativity, constants, private interiors, guards, near misses."""

from typing import Any

import pytest

from regraft.ir.builder import Builder
from regraft.ir.graph import Value
from regraft.ir.ops import OPS
from regraft.ir.rewrite import Match, Pattern, Patterns, Reject, Rule, RuleSet, rewrite
from regraft.ir.rewrite.pattern import AnyOf, Apply, Variable
from tests.passes.cleanup.rewriting import outputs, parse, show

add, mul, relu = OPS["add"], OPS["mul"], OPS["relu"]


class FuseMulAdd(Rule):
    """x * 2 + y -> x + (x + y)."""

    def pattern(self, p: Patterns, x: Variable, y: Variable) -> Apply:
        return p.add(p.mul(x, 2.0).named("product"), y)

    def guard(self, m: Match, x: Value) -> Reject | str:
        if x.rank != 2:
            return Reject("x is no matrix", x)
        return str(m.node("product").op.name)

    def apply(self, plan: str, build: Builder, x: Value, y: Value) -> Value:
        assert plan == "mul"
        return build.op(add, x, build.op(add, x, y))


def _rewrite(rule: Rule, body: str, inputs: str = "%x : f32[B, 4], %z : f32[B, 4]") -> str:
    module = parse(f"graph({inputs}) {{\n{body}\n}}")
    stats = rewrite(module, RuleSet(rule))
    assert stats.changed == bool(stats.counts or stats.num_dropped)
    return outputs(module)


@pytest.mark.parametrize(
    "body",
    [
        "%k = literal f32[] 2\n%m = mul(%x, %k)\n%y = add(%m, %z)\nreturn %y",
        "%k = literal f32[] 2\n%m = mul(%k, %x)\n%y = add(%m, %z)\nreturn %y",
        "%k = literal f32[] 2\n%m = mul(%k, %x)\n%y = add(%z, %m)\nreturn %y",
        "%k = literal f32[1, 4] splat 2\n%m = mul(%x, %k)\n%y = add(%z, %m)\nreturn %y",
    ],
)
def test_commutative_operands_match_in_both_orders(body: str) -> None:
    assert _rewrite(FuseMulAdd(), body) == "add(x, add(x, z))"


def test_match_backtracks_over_orders() -> None:
    # the first product does not fit: its constant is 3
    body = (
        "%a = literal f32[] 3\n%b = literal f32[] 2\n%m = mul(%x, %a)\n%n = mul(%z, %b)\n"
        "%y = add(%m, %n)\nreturn %y"
    )
    assert _rewrite(FuseMulAdd(), body) == "add(z, add(z, mul(x, 3.0)))"


@pytest.mark.parametrize(
    ("body", "miss"),
    [
        ("%k = literal f32[] 3\n%m = mul(%x, %k)\n%y = add(%m, %z)\nreturn %y",
         "3 of 5 parts match, then a value is not the constant 2.0 (`k`)"),
        ("%k = literal f32[] 2\n%m = mul(%x, %k)\n%y = add(%m, %z)\nreturn %y, %m",
         "5 of 5 parts match, then a value inside is used elsewhere (`m`)"),
        ("%m = relu(%x)\n%y = add(%m, %z)\nreturn %y",
         "1 of 5 parts match, then `mul` was expected, found relu (`m`)"),
    ],
)  # fmt: skip
def test_near_miss_says_how_far_it_got_and_why(body: str, miss: str) -> None:
    module = parse(f"graph(%x : f32[B, 4], %z : f32[B, 4]) {{\n{body}\n}}")
    stats = rewrite(module, RuleSet(FuseMulAdd()), explain="fuse-mul-add")
    assert not stats.changed
    assert str(stats.near_misses[0]) == f"fuse-mul-add at add `y`: {miss}"


def test_guard_that_rejects_is_explained() -> None:
    module = parse(
        "graph(%x : f32[B, 4, 1], %z : f32[B, 4, 1]) {\n"
        "%k = literal f32[] 2\n%m = mul(%x, %k)\n%y = add(%m, %z)\nreturn %y\n}"
    )
    stats = rewrite(module, RuleSet(FuseMulAdd()), explain="fuse-mul-add")
    assert str(stats.near_misses[0]).endswith("5 of 5 parts match, then x is no matrix (`x`)")


def test_explaining_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="fuse-all"):
        rewrite(parse("graph(%x : f32[1]) {\nreturn %x\n}"), RuleSet(), explain="fuse-all")


class _Square(Rule):
    def pattern(self, p: Patterns, x: Variable) -> Apply:
        return p.mul(x, x)

    def apply(self, plan: Any, build: Builder, x: Value) -> Value:
        return build.op(OPS["abs"], x)


def test_variable_used_twice_is_one_value() -> None:
    assert _rewrite(_Square(), "%y = mul(%x, %x)\nreturn %y") == "abs(x)"
    assert _rewrite(_Square(), "%y = mul(%x, %z)\nreturn %y") == "mul(x, z)"


class _Swish(Rule):
    """An interior value that the pattern itself uses twice is private all the same."""

    def pattern(self, p: Patterns, x: Variable, z: Variable) -> Apply:
        inner = p.add(x, z)
        return p.mul(inner, p.sigmoid(inner))

    def apply(self, plan: Any, build: Builder, x: Value, z: Value) -> Value:
        return build.op(relu, build.op(add, x, z))


def test_interior_value_may_be_used_twice_inside() -> None:
    body = "%a = add(%x, %z)\n%s = sigmoid(%a)\n%y = mul(%s, %a)\nreturn %y"
    assert _rewrite(_Swish(), body) == "relu(add(x, z))"
    shared = body.replace("return %y", "return %y, %a")
    assert _rewrite(_Swish(), shared).startswith("mul(sigmoid(add(x, z))")


class _Shared(Rule):
    def pattern(self, p: Patterns, x: Variable) -> Apply:
        return p.relu(p.relu(x).shared())

    def apply(self, plan: Match, build: Builder) -> Value:
        return plan.root.inputs[0]  # type: ignore[return-value]  # matched, so present


def test_shared_interior_may_be_used_elsewhere() -> None:
    body = "%a = relu(%x)\n%y = relu(%a)\nreturn %y, %a"
    assert _rewrite(_Shared(), body) == "relu(x); relu(x)"


class _AnyActivation(Rule):
    def pattern(self, p: Patterns, x: Variable) -> AnyOf:
        return p.any_of(p.relu(p.neg(x)), p.exp(p.any_of(p.neg(x), p.abs(x))))

    def apply(self, plan: Any, build: Builder, x: Value) -> Value:
        return build.op(OPS["sin"], x)


@pytest.mark.parametrize("outer_inner", ["relu neg", "exp neg", "exp abs"])
def test_alternatives(outer_inner: str) -> None:
    outer, inner = outer_inner.split()
    assert _rewrite(_AnyActivation(), f"%a = {inner}(%x)\n%y = {outer}(%a)\nreturn %y") == "sin(x)"


def test_no_alternative() -> None:
    body = "%a = abs(%x)\n%y = relu(%a)\nreturn %y"
    assert _rewrite(_AnyActivation(), body) == "relu(abs(x))"


class _Attributes(Rule):
    def pattern(self, p: Patterns, x: Variable) -> Apply:
        return p.transpose(
            p.reduce_sum(x, axes=lambda axes: axes is not None and len(axes) == 1), perm=(1, 0)
        )

    def apply(self, plan: Any, build: Builder, x: Value) -> Value:
        return build.op(OPS["reduce_mean"], x, axes=(0,))


@pytest.mark.parametrize(
    ("perm", "axes", "applies"),
    [("[1, 0]", "[1]", True), ("[0, 1]", "[1]", False), ("[1, 0]", "[0, 1]", False)],
)
def test_attribute_constraints(perm: str, axes: str, applies: bool) -> None:
    module = parse(
        f"graph(%x : f32[1, 1]) {{\n%a = reduce_sum(%x) {{axes = {axes}}}\n"
        f"%y = transpose(%a) {{perm = {perm}}}\nreturn %y\n}}"
    )
    assert rewrite(module, RuleSet(_Attributes())).changed == applies


class _Gemm(Rule):
    def __init__(self, mode: str) -> None:
        self.mode = mode

    def pattern(self, p: Patterns, x: Variable, w: Variable, b: Variable) -> Apply:
        match self.mode:
            case "absent":
                return p.gemm(x, w)
            case "optional":
                return p.gemm(x, p.constant(w), p.optional(b))
            case _:
                return p.gemm(x, w, p.anything)

    def apply(self, plan: Any, build: Builder, x: Value, b: Value | None) -> Value:
        y = build.op(OPS["exp"], x)
        return y if b is None else build.op(add, y, b)


@pytest.mark.parametrize(
    ("mode", "operands", "expected"),
    [
        ("absent", "%x, %k", "exp(x)"),
        ("absent", "%x, %k, %v", "gemm"),  # a bias that the pattern does not mention
        ("optional", "%x, %k, %v", "add(exp(x), v)"),
        ("optional", "%x, %k", "exp(x)"),
        ("optional", "%x, %z", "gemm"),  # not a constant
        ("anything", "%x, %z, %v", "exp(x)"),
    ],
)
def test_absent_optional_and_any_operands(mode: str, operands: str, expected: str) -> None:
    body = f"%k = literal f32[4, 4] splat 1\n%y = gemm({operands})\nreturn %y"
    inputs = "%x : f32[4, 4], %z : f32[4, 4], %v : f32[4]"
    assert _rewrite(_Gemm(mode), body, inputs).startswith(expected)


def test_split_result_is_matched_by_position() -> None:
    class SecondHalf(Rule):
        def pattern(self, p: Patterns, x: Variable) -> Apply:
            return p.relu(p.split(x).output(1))

        def apply(self, plan: Any, build: Builder, x: Value) -> Value:
            return build.op(OPS["slice"], x, starts=(2,), ends=(4,), axes=(1,))

    body = "%a, %b = split(%x) {{axis = 1, sizes = [2, 2]}}\n%y = relu(%{})\nreturn %y"
    assert _rewrite(SecondHalf(), body.format("b")).startswith("slice(x")
    assert _rewrite(SecondHalf(), body.format("a")).startswith("relu(split(x")


def test_numbers_match_as_the_element_type_rounds_them() -> None:
    class Scale(Rule):
        def pattern(self, p: Patterns, x: Variable) -> Apply:
            return p.mul(x, 0.7978845608028654)

        def apply(self, plan: Any, build: Builder, x: Value) -> Value:
            return x

    for dtype, number, matches in (
        ("f32", "0.79788456", True), ("f32", "0.7978", False), ("f16", "0.798", True),
    ):  # fmt: skip
        body = f"%k = literal {dtype}[] {number}\n%y = mul(%x, %k)\nreturn %y"
        assert (_rewrite(Scale(), body, f"%x : {dtype}[3]") == "x") == matches


def test_unknown_names_are_errors_of_the_rule() -> None:
    p = Patterns()
    with pytest.raises(AttributeError, match="no operator is named `fuze`"):
        p.fuze()
    with pytest.raises(AttributeError, match="`relu` has no attribute `alpha`"):
        p.relu(Variable("x"), alpha=1)
    with pytest.raises(TypeError, match="`relu` takes 1 operands"):
        p.relu(Variable("x"), Variable("y"))


def test_rule_names_are_kebab_case_and_unique() -> None:
    assert FuseMulAdd().name == "fuse-mul-add"
    with pytest.raises(ValueError, match="two rules are named `fuse-mul-add`"):
        (RuleSet(FuseMulAdd()) + RuleSet(FuseMulAdd())).compile()


def test_pattern_must_start_at_an_operator() -> None:
    class Everything(Rule):
        def pattern(self, p: Patterns, x: Variable) -> Pattern:  # type: ignore[override]  # the error under test
            return x

    with pytest.raises(TypeError, match="must start at an operator"):
        Everything().compile()


def test_new_nodes_take_the_name_and_record_the_rule() -> None:
    module = parse(
        "graph(%x : f32[B, 4], %z : f32[B, 4]) {\n"
        "%k = literal f32[] 2\n%m = mul(%x, %k)\n%y = add(%m, %z)\nreturn %y\n}"
    )
    rewrite(module, RuleSet(FuseMulAdd()))
    (value,) = module.graph.outputs
    assert value.name == "y"
    assert show(value) == "add(x, add(x, z))"
    assert value.producer is not None
    assert "rule:fuse-mul-add" in value.producer.loc
