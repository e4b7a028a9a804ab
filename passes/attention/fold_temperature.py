"""A temperature folded into the weights that make queries."""

from __future__ import annotations

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.graph import Node
from regraft.ir.ops import arithmetic, linalg, rotary
from regraft.passes.analysis.views import is_movement

_MAX_STEPS = 12


def fold_temperature(node: Node, tau: float) -> str:
    """Divides what makes the queries of an attention by `tau`; returns why it cannot, or "".

    W_Q <- W_Q / tau, and its bias. Rotary embedding and data movement stand in between.
    """
    value = node.inputs[0]
    scaled: list[tuple[Node, int]] = []
    for _ in range(_MAX_STEPS):
        maker = None if value is None else value.producer
        if value is None or maker is None or value.num_uses != 1:
            break
        constants = [i for i, x in enumerate(maker.inputs) if x is not None and is_constant(x)]
        if maker.op in (linalg.matmul, linalg.gemm):
            data = 1 if constants == [0] else 0
            if not constants or data in constants:
                break
            scaled += [(maker, i) for i in constants if maker.op is linalg.matmul or i != data]
            for user, idx in scaled:
                _divide(user, idx, tau)
            return ""
        if maker.op is arithmetic.add and len(constants) == 1:
            scaled.append((maker, constants[0]))
            value = maker.inputs[1 - constants[0]]
        elif maker.op is rotary.rotary_embedding or is_movement(maker):
            value = maker.inputs[0]
        else:
            break
    return "its queries are not made by a linear layer of their own"


def _divide(node: Node, idx: int, tau: float) -> None:
    weight, graph = node.inputs[idx], node.graph
    if weight is None or graph is None:
        raise AssertionError("the weight was there")
    b = Builder(graph, node, node.loc)
    node.set_operand(idx, b.op(arithmetic.mul, weight, b.constant(1 / tau, weight.dtype)))
