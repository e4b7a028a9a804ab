"""A rewrite rule of a user's own, in ten lines, through the public API alone."""

import regraft
from regraft.ir.text import parse_module


class DoubleNegative(regraft.Rule):
    """neg(neg(x)) -> x."""

    def pattern(self, p, x):  # type: ignore[no-untyped-def]  # users need not annotate
        return p.neg(p.neg(x))

    def apply(self, plan, b, x):  # type: ignore[no-untyped-def]  # users need not annotate
        return x


def test_own_rule_is_applied_and_checked() -> None:
    module = parse_module(
        "symbol B\ngraph(%x : f32[B, 4]) {\n%a = neg(%x)\n%b = neg(%a)\n%y = exp(%b)\nreturn %y\n}"
    )
    (record,) = regraft.apply(module, [DoubleNegative()], check="match")
    assert [node.op.name for node in module.graph] == ["exp"]
    assert record.stats["double-negative"] == 1
    assert record.pipeline == "double-negative"
