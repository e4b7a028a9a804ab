"""Plans to raise activation functions to their operators."""

from __future__ import annotations

from collections.abc import Iterable

from regraft.ir.graph import Node
from regraft.ir.rewrite import Rewriter
from regraft.passes.analysis.unary_functions import Activation
from regraft.passes.fusion.plan import Plan, Raise


def plan_activations(found: Iterable[Activation], plan: Plan) -> None:
    """Adds every activation that is spelled out and has an operator."""
    for activation in found:
        if activation.function.op is not None and not activation.is_canonical:
            name = activation.function.op.name.replace("_", "-")
            plan.add(activation.nodes[0], f"raise-{name}", _raised(activation))


def _raised(activation: Activation) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        op, attrs = activation.function.op, dict(activation.function.attrs)
        if op is None:
            raise AssertionError("only functions with an operator are planned")
        rw.replace(node, rw.builder(node).op(op, activation.input, **attrs))

    return apply
