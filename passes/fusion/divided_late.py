"""Weights that are divided by their sum only after they have met the values."""

from __future__ import annotations

from regraft.ir.graph import Node
from regraft.ir.ops import arithmetic, functions, linalg, reduce
from regraft.ir.rewrite import Rewriter, RuleSet, local_rule
from regraft.passes.cleanup.facts import made_by


@local_rule(arithmetic.div)
def divide_before_the_values(node: Node, rw: Rewriter) -> bool:
    """(exp(x) @ v) / sum(exp(x)) -> (exp(x) / sum(exp(x))) @ v, where exp(x) is only used here."""
    product = made_by(node.inputs[0], linalg.matmul)
    total = made_by(node.inputs[1], reduce.reduce_sum)
    if product is None or total is None or not total.attrs["keepdims"]:
        return False
    power, values = product.inputs
    if power is None or values is None or total.inputs[0] is not power or power.rank is None:
        return False
    if made_by(power, functions.exp) is None or {*power.users} != {product, total}:
        return False
    if product.output.num_uses != 1 or values.rank is None or values.rank < 2:
        return False
    axes = total.static("axes")
    if not isinstance(axes, tuple) or [axis % power.rank for axis in axes] != [power.rank - 1]:
        return False
    b = rw.builder(node)
    weights = b.op(arithmetic.div, power, total.output)
    rw.replace(node, b.op(linalg.matmul, weights, values))
    return True


RULES = RuleSet(divide_before_the_values)
"""Attention is found by its weights: what is left undivided has none."""
