"""Control flow that is decided: an `if` of a constant condition becomes its branch."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import clone_graph
from regraft.ir.ops import control
from regraft.ir.rewrite import Rewriter, RuleSet, local_rule
from regraft.passes.cleanup.facts import uniform


@local_rule(control.if_)
def decided_branch(node: Node, rw: Rewriter) -> bool:
    """if(true) {a} else {b} -> a."""
    condition = node.inputs[0]
    truth = uniform(condition)
    if truth is None and condition is not None and isinstance(condition.content, int):
        truth = float(condition.content)
    if truth is None:
        return False
    rw.replace(node, *inline(node.bodies[0 if truth else 1], node, node.inputs[1:]))
    return True


def inline(body: Graph, before: Node, inputs: Sequence[Value | None]) -> list[Value]:
    """Copies the nodes of a body before a node and returns the values of the body's outputs."""
    graph = before.graph
    if graph is None:
        raise AssertionError(f"{before!r} is erased")
    values = {
        formal: actual
        for formal, actual in zip(body.inputs, inputs, strict=True)
        if actual is not None
    }
    for node in body:
        made = graph.create(
            node.op,
            [None if value is None else values[value] for value in node.inputs],
            node.attrs,
            num_outputs=len(node.outputs),
            bodies=tuple(clone_graph(inner, graph.scope) for inner in node.bodies),
            before=before,
            loc=node.loc,
            infer=False,
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type, new.content = old.name, old.type, old.content
            values[old] = new
    return [values[value] for value in body.outputs]


RULES = RuleSet(decided_branch)
