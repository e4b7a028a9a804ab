"""The assertions of `regraft.testing` fail when they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from regraft import Context, Exact, Module, PassResult
from regraft.ir.errors import CheckError
from regraft.ir.ops import OPS
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.rewrite import Rewriter, local_rule
from regraft.ir.types import DType
from regraft.passes.cleanup import Canonicalize
from regraft.testing import Sample, check_op, check_pass, check_rule, floats
from tests.cli.workplace import TEXT

ZERO = "graph(%x : f32[B, 4]) {\n %a = sub(%x, %x)\n %y = neg(%a)\n return %y\n}"


@dataclass(frozen=True, slots=True)
class Edit:
    """Does what a test wants, and says what it wants."""

    name: ClassVar[str] = "edit"
    contract: ClassVar[Any] = Exact()

    how: str = "nothing"
    says: bool = True

    def run(self, module: Module, ctx: Context) -> PassResult:
        relu = next((n for n in module.graph if n.op is OPS["relu"]), None)
        match self.how:
            case "drop" if relu is not None:
                module.graph.replace(relu, [relu.inputs[0]])
            case "again" if relu is not None:
                more = module.graph.create(OPS["relu"], [relu.output])
                module.graph.set_operand(0, more.output)
            case "break" if relu is not None:
                relu.attrs["unknown"] = 3
        return PassResult(self.says)


def test_right_pass_and_rule_are_accepted() -> None:
    after = check_pass(Canonicalize(), TEXT)
    assert [node.op.name for node in after.graph] == ["relu"]

    @local_rule(OPS["neg"])
    def double_neg(node: Any, rw: Rewriter) -> bool:
        inner = node.inputs[0].producer
        if inner is None or inner.op is not OPS["neg"]:
            return False
        rw.replace(node, inner.inputs[0])
        return True

    assert len(check_rule(double_neg, TEXT).graph) == 1


@pytest.mark.parametrize(("item", "error", "message"), [
    (Edit("nothing", True), AssertionError, "says that it changed the module"),
    (Edit("drop", True), CheckError, "pass `edit.*` changed output"),
    (Edit("again", False), AssertionError, "says that it changed nothing"),
    (Edit("again", True), AssertionError, "changes its own result"),
    (Edit("break", True), Exception, "unknown"),
])  # fmt: skip
def test_wrong_pass_is_refused(item: Edit, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_pass(item, TEXT)


def test_sample_that_proves_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="prove nothing"):
        check_pass(Canonicalize(), ZERO)


def test_rule_that_matches_nowhere_is_refused() -> None:
    @local_rule(OPS["exp"])
    def never(node: Any, rw: Rewriter) -> bool:
        return False

    with pytest.raises(AssertionError, match="matches nowhere"):
        check_rule(never, TEXT)


def op(**fields: Any) -> OpSpec:
    given = {
        "name": "test.scale", "source": "this test", "operands": (Operand("x"),),
        "attrs": (Attr("by", AttrKind.FLOAT),), "axes": "*b -> *b",
        "eval": lambda c, x: x * c.attrs["by"],
        "body": lambda node, b: b.op(
            OPS["mul"], node.inputs[0], b.constant(node.attrs["by"], DType.F32)
        ),
    }  # fmt: skip
    return OpSpec(**{**given, **fields})


SAMPLES = [Sample((floats(3, 4),), {"by": 3.0})]


def test_right_operator_is_accepted() -> None:
    check_op(op(), SAMPLES)


@pytest.mark.parametrize(("fields", "message"), [
    ({"eval": lambda c, x: x[:1] * c.attrs["by"], "body": None}, "computed"),
    ({"body": lambda node, b: b.op(OPS["neg"], node.inputs[0])}, "body disagrees"),
    ({"eval": lambda c, x: x[::-1] * 1.0, "body": None}, "pass label"),
    ({"eval": lambda c, x: x * 0.0, "body": None, "axes": "*b -> *b"}, "all alike"),
])  # fmt: skip
def test_operator_whose_parts_disagree_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_op(op(**fields), SAMPLES)


def test_operator_without_samples_is_refused() -> None:
    with pytest.raises(AssertionError, match="no samples"):
        check_op(op(), [])
