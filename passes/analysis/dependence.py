"""Which values depend on the content of the inputs, and which on sizes and weights alone."""

from __future__ import annotations

from regraft.ir.graph import Graph, Value
from regraft.ir.ops import sizes
from regraft.ir.opspec import Trait

_SIZES = frozenset(sizes.OPS)


def data_values(graph: Graph) -> set[Value]:
    """Returns the values that depend on an input's content, bodies included; cost O(nodes)."""
    found: set[Value] = set()
    _collect(graph, found, all_inputs=True)
    return found


def _collect(graph: Graph, found: set[Value], *, all_inputs: bool) -> None:
    if all_inputs:
        found.update(graph.inputs)
    for node in graph:
        if node.op in _SIZES:
            continue
        depends = not node.op.is_pure and not node.op.traits & Trait.CONSTANT
        depends = depends or any(value in found for value in node.inputs)
        if depends:
            found.update(node.outputs)
        for body in node.bodies:
            _collect(body, found, all_inputs=True)
