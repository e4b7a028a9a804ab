"""Every rewrite is checked; a wrong rule is named, whatever it gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from regraft.ir.compare import differences
from regraft.ir.errors import CheckError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.rewrite import Rewriter, RuleSet, local_rule, rewrite
from regraft.ir.rewrite.rule import Apply
from regraft.ir.text import parse_module, read_module
from regraft.ir.verify import verify
from regraft.passes.check.cut_run import FEW_ELEMENTS, MANY_ELEMENTS, max_elements
from regraft.passes.check.match_check import MatchChecker
from regraft.passes.check.samples import Sample
from regraft.passes.manager import CheckMode, PassManager
from regraft.passes.protocol import Context, Contract, Exact, Lossy, PassResult, Within

ADD, SUB, MUL, RELU, NEG, EXP = (OPS[n] for n in ("add", "sub", "mul", "relu", "neg", "exp"))
TRANSPOSE, RESHAPE, CAST, SHAPE = (OPS[n] for n in ("transpose", "reshape", "cast", "shape"))


def check(text: str, *rules: object, contract: Contract | None = None) -> MatchChecker:
    module = parse_module(text)
    checker = MatchChecker(contract or Exact())
    rewrite(module, RuleSet(*rules), observer=checker)  # type: ignore[arg-type]
    return checker


def rule(name: str, op: str) -> Callable[[Apply], object]:
    return local_rule(OPS[op], name=name)


ONE = """
graph(%x : f32[B, 4], %y : f32[B, 4]) {{
  %h = exp(%x)
  %r = {body}
  return %r as %out
}}
"""


def one(body: str) -> str:
    return ONE.format(body=body)


# -- right rules ----------------------------------------------------------------------------------


def test_relu_of_relu_is_proved_through_the_shared_node() -> None:
    @rule("relu-relu", "relu")
    def relu_relu(node: Node, rw: Rewriter) -> bool:
        inner = node.inputs[0].producer
        if inner is None or inner.op is not RELU:
            return False
        rw.replace(node, node.inputs[0])
        return True

    text = "graph(%x : f32[B, 4]) {\n %a = relu(%x)\n %b = relu(%a)\n return %b as %out\n}"
    checker = check(text, relu_relu)
    assert (checker.num_checked, checker.num_unchecked) == (1, 0)


def test_rule_that_drops_an_operand_is_proved_without_looking_further() -> None:
    @rule("mul-zero", "mul")
    def mul_zero(node: Node, rw: Rewriter) -> bool:
        rw.replace(node, node.inputs[1])
        return True

    text = (
        "graph(%x : f32[B]) {\n %a = cast(%x) {to = i64}\n %z = literal i64[] 0\n"
        " %b = mul(%a, %z)\n %o = add(%b, %a)\n return %o as %out\n}"
    )
    module = parse_module(text)
    mul = next(n for n in module.graph if n.op is MUL)
    assert mul.output.shape == mul.inputs[0].shape
    zero = module.graph.create(SUB, [mul.inputs[0], mul.inputs[0]], before=mul)
    checker = MatchChecker()
    checker.replaced("mul-zero", mul, [zero.output], [zero])
    assert checker.num_checked == 1


def test_equal_layers_are_evaluated_once() -> None:
    @rule("double-neg", "neg")
    def double_neg(node: Node, rw: Rewriter) -> bool:
        inner = node.inputs[0].producer
        if inner is None or inner.op is not NEG:
            return False
        rw.replace(node, inner.inputs[0])
        return True

    lines, last = [], "x"
    for i in range(32):
        lines += [f"%a{i} = neg(%{last})", f"%b{i} = neg(%a{i})", f"%e{i} = exp(%b{i})"]
        last = f"e{i}"
    text = f"graph(%x : f32[B, 4]) {{\n {chr(10).join(lines)}\n return %{last} as %out\n}}"
    checker = check(text, double_neg)
    assert checker.num_checked == 32
    assert checker.num_evaluated == 1


def test_known_content_of_sizes_is_bound() -> None:
    from regraft.passes.cleanup import Canonicalize

    text = (
        "graph(%x : f32[B, S, 8]) {\n %s = shape(%x)\n %n = literal i64[] 1\n"
        " %g = gather(%s, %n) {axis = 0}\n %c = cast(%g) {to = f32}\n %m = mul(%x, %c)\n"
        " return %m as %out\n}"
    )
    module = parse_module(text)
    checker = MatchChecker()
    Canonicalize().run(module, Context(observer=checker))
    assert checker.num_unchecked == 0


def test_change_in_place_is_proved() -> None:
    @rule("explicit", "transpose")
    def explicit(node: Node, rw: Rewriter) -> bool:
        if node.attrs["perm"] is not None:
            return False
        rw.update(node, attrs={"perm": (1, 0)})
        return True

    module = parse_module(one("transpose(%h)"))
    checker = MatchChecker()
    rewrite(module, RuleSet(explicit), observer=checker)
    assert (checker.num_checked, checker.num_unchecked) == (1, 0)
    assert [node.op for node in module.graph] == [EXP, TRANSPOSE]
    assert verify(module, "full") == []


UNKNOWN_RANK = (
    "graph(%x : f32[B, 4], %s : i64[*]) {\n %h = reshape(%x, %s)\n %r = cast(%h) {to = f32}\n"
    " %z = relu(%r)\n return %z as %out\n}"
)


def test_value_of_unknown_rank_is_drawn_at_several_ranks() -> None:
    checker = check(UNKNOWN_RANK, rule("own-type", "cast")(forward(0)))
    assert (checker.num_checked, checker.num_unchecked) == (1, 0)


# -- wrong rules ----------------------------------------------------------------------------------


def forward(idx: int) -> Apply:
    def apply(node: Node, rw: Rewriter) -> bool:
        rw.replace(node, node.inputs[idx])
        return True

    return apply


def swap(op: str) -> Apply:
    def apply(node: Node, rw: Rewriter) -> bool:
        if any("rule:" in origin for origin in node.loc):
            return False
        rw.replace(node, rw.builder(node).op(OPS[op], node.inputs[1], node.inputs[0]))
        return True

    return apply


def to_sub(node: Node, rw: Rewriter) -> bool:
    rw.replace(node, rw.builder(node).op(SUB, *node.inputs))
    return True


def nearly(node: Node, rw: Rewriter) -> bool:
    b = rw.builder(node)
    if any("rule:" in origin for origin in node.loc):
        return False
    off = b.op(MUL, node.inputs[0], b.constant(np.float32(1.0001)))
    rw.replace(node, b.op(ADD, off, node.inputs[1]))
    return True


def wrong_order(node: Node, rw: Rewriter) -> bool:
    if any("rule:" in origin for origin in node.loc):
        return False
    b = rw.builder(node)
    x = node.inputs[0]
    rw.replace(node, b.op(RESHAPE, x, shape=node.output.shape))
    return True


WRONG = [
    ("add(%h, %y)", "add-forward", "add", forward(0)),
    ("add(%h, %y)", "add-other", "add", forward(1)),
    ("sub(%h, %y)", "sub-commutes", "sub", swap("sub")),
    ("add(%h, %y)", "add-is-sub", "add", to_sub),
    ("add(%h, %y)", "add-nearly", "add", nearly),
    ("relu(%y)", "relu-is-nothing", "relu", forward(0)),
    ("transpose(%h) {perm = [1, 0]}", "transpose-is-reshape", "transpose", wrong_order),
]


@pytest.mark.parametrize(("body", "name", "op", "apply"), WRONG, ids=[w[1] for w in WRONG])
def test_wrong_rule_is_caught_and_named(body: str, name: str, op: str, apply: Apply) -> None:
    with pytest.raises(CheckError, match=rf"rule `{name}` at {op} `r`: "):
        check(one(body), rule(name, op)(apply))


def test_wrong_change_in_place_is_caught_and_named() -> None:
    @rule("other-operand", "add")
    def other_operand(node: Node, rw: Rewriter) -> bool:
        rw.update(node, {1: node.inputs[0]})
        return True

    with pytest.raises(CheckError, match="rule `other-operand` at add `r`: "):
        check(one("add(%h, %y)"), other_operand)


def test_wrong_rule_at_a_value_of_unknown_rank_is_caught() -> None:
    with pytest.raises(CheckError, match="rule `relu-is-nothing` at relu `z`: "):
        check(UNKNOWN_RANK, rule("relu-is-nothing", "relu")(forward(0)))


def test_allowed_difference_follows_the_contract() -> None:
    rules = rule("nearly", "add")(nearly)
    assert check(one("add(%h, %y)"), rules, contract=Within(1e-2, "test")).num_checked == 1
    lossy = check(one("add(%h, %y)"), rules, contract=Lossy("accuracy"))
    assert (lossy.num_checked, lossy.unchecked) == (
        0,
        {"the pass is lossy (accuracy: unbounded)": 1},
    )


def test_wrong_rule_deep_in_a_graph_is_caught() -> None:
    lines = ["%a0 = exp(%x)", *(f"%a{i} = sin(%a{i - 1})" for i in range(1, 100))]
    body = "\n".join(lines)
    text = f"graph(%x : f32[B, 4]) {{\n{body}\n %r = relu(%a99)\n return %r as %out\n}}"
    with pytest.raises(CheckError, match="relu-is-nothing"):
        check(text, rule("relu-is-nothing", "relu")(forward(0)))


def test_opaque_operand_is_a_free_value() -> None:
    @rule("neg-neg", "neg")
    def neg_neg(node: Node, rw: Rewriter) -> bool:
        inner = node.inputs[0].producer
        if inner is None or inner.op is not NEG:
            return False
        rw.replace(node, inner.inputs[0])
        return True

    text = (
        "graph(%x : f32[B, 4]) {\n"
        ' %o = opaque(%x) {dialect = "onnx:x", op_type = "F"} : f32[B, 4]\n'
        " %a = neg(%o)\n %b = neg(%a)\n return %b as %out\n}"
    )
    assert check(text, neg_neg).num_checked == 1


# -- through the manager --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wrong:
    """Replaces add by its first operand."""

    name: ClassVar[str] = "wrong"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        rules = RuleSet(rule("add-forward", "add")(forward(0)))
        stats = rewrite(module, rules, observer=ctx.observer)
        return PassResult(stats.changed, dict(stats.counts))


@dataclass(frozen=True, slots=True)
class WrongByHand:
    """Replaces add by its first operand, past every rule."""

    name: ClassVar[str] = "wrong-by-hand"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        node = next(n for n in module.graph if n.op is ADD)
        module.graph.replace(node, [node.inputs[0]])
        return PassResult(True)


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((2, 4)).astype(np.float32) for n in ("x", "y")}
    return [Sample(inputs, {"B": 2}, "given")]


@pytest.mark.parametrize("mode", [CheckMode.MATCH, CheckMode.MODULE, CheckMode.EACH])
def test_failure_restores_the_module_and_leaves_a_reproducer(
    mode: CheckMode, tmp_path: Path
) -> None:
    module = parse_module(one("add(%h, %y)"))
    before = str(module)
    manager = PassManager(Context(work_dir=tmp_path), mode, samples())
    with pytest.raises(CheckError, match="add-forward") as caught:
        manager.run(module, [Wrong()])
    assert str(module) == before
    assert "in pass `wrong`" in caught.value.__notes__
    (folder,) = tmp_path.iterdir()
    assert str(folder) in str(caught.value.hint)
    assert (folder / "pipeline.txt").read_text() == "wrong\n"
    assert differences(read_module(folder / "module.rg"), parse_module(before)) == []
    with np.load(folder / "samples" / "0.npz") as stored:
        assert np.array_equal(stored["x"], samples()[0].inputs["x"])


def test_each_catches_what_no_rule_did(tmp_path: Path) -> None:
    module = parse_module(one("add(%h, %y)"))
    manager = PassManager(Context(work_dir=tmp_path), CheckMode.EACH, samples())
    with pytest.raises(CheckError, match="pass `wrong-by-hand` changed output `out`"):
        manager.run(module, [WrongByHand()])
    assert any(node.op is ADD for node in module.graph)


def test_record_never_claims_what_was_not_checked() -> None:
    text = one("add(%h, %y)")
    (off,) = PassManager(Context()).run(parse_module(text), [Wrong()])
    assert off.verified == "no (checks are off)"
    manager = PassManager(Context(), CheckMode.MATCH)
    (by_hand,) = manager.run(parse_module(text), [WrongByHand()])
    assert by_hand.verified == "no (no rule was applied)"


def test_few_values_are_not_enough_to_excuse_a_difference() -> None:
    # the sum of four positive numbers is rarely negative: a look or two would not see the relu
    text = (
        "graph(%x : f32[B, 4]) {\n %w = literal f32[4, 1] [1, 1, 1, 0.5]\n"
        " %m = matmul(%x, %w)\n %r = relu(%m)\n return %r as %out\n}"
    )
    with pytest.raises(CheckError, match="relu-is-nothing"):
        check(text, rule("relu-is-nothing", "relu")(forward(0)))


def test_layers_that_differ_in_a_constant_are_not_one() -> None:
    # right for the first bias, which is zero, and wrong for the second
    bias = ["0"] * 32, ["0"] * 31 + ["1"]
    lines, last = [], "x"
    for i, values in enumerate(bias):
        lines += [f"%c{i} = literal f32[32] [{', '.join(values)}]"]
        lines += [f"%a{i} = add(%{last}, %c{i})", f"%e{i} = exp(%a{i})"]
        last = f"e{i}"
    body = "\n ".join(lines)
    text = f"graph(%x : f32[B, 32]) {{\n {body}\n return %{last} as %out\n}}"
    with pytest.raises(CheckError, match="rule `add-forward` at add `a1`"):
        check(text, rule("add-forward", "add")(forward(0)))


def test_limit_of_elements_is_that_of_the_model() -> None:
    text = (
        "weight @w : f32[{rows}, 4096] role=param = random(1)\n"
        "graph(%x : f32[B, 4]) {{\n %r = relu(%x)\n return %r as %out\n}}"
    )
    assert max_elements(parse_module(text.format(rows=4))) == MANY_ELEMENTS
    assert max_elements(parse_module(text.format(rows=1 << 16))) == FEW_ELEMENTS
    wide = "graph(%x : f32[2048, 2048]) {\n %r = relu(%x)\n %s = relu(%r)\n return %s as %out\n}"
    module = parse_module(wide)
    for limit, num_checked in ((FEW_ELEMENTS, 0), (MANY_ELEMENTS, 1)):
        checker = MatchChecker(limit=limit)
        node = module.graph.last
        assert node is not None
        checker.replaced("nothing", node, [node.output], [])
        assert checker.num_checked == num_checked
