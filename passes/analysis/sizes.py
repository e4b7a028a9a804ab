"""Size arithmetic in floats: what feeds a float -> integer conversion decides shapes, not values.

`floor(shape * scale)` rounded to 11 bits gives another size. Such chains are short: tensors of at
most one axis between an integer source and an integer cast. They stay in f32 whole.
"""

from __future__ import annotations

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops.cast import cast
from regraft.ir.ops.fill import range_
from regraft.ir.ops.resize import resize
from regraft.ir.ops.rounding import ceil, floor, round_
from regraft.ir.opspec import Trait
from regraft.ir.types import DType

_ROUNDING = frozenset({ceil, floor, round_, range_})


def size_arithmetic(graph: Graph) -> set[Node]:
    """Returns the nodes, bodies included, whose f32 results decide sizes; cost O(nodes)."""
    found: set[Node] = set()
    pending: list[Value] = []
    for node in graph.walk():
        if node.op in _ROUNDING or _to_integer(node):
            pending += [v for v in node.inputs if v is not None]
            if any(_is_small(v) for v in node.inputs if v is not None):
                found.add(node)
        elif node.op is resize:
            pending += [v for v in node.inputs[1:] if v is not None]
    while pending:
        value = pending.pop()
        producer = value.producer
        if producer is None or producer in found or not _is_small(value):
            continue
        if Trait.CONSTANT in producer.op.traits:
            continue  # every use of a constant decides for itself
        found.add(producer)
        pending += [v for v in producer.inputs if v is not None]
    return found


def _to_integer(node: Node) -> bool:
    return node.op is cast and node.attrs["to"].is_integer


def _is_small(value: Value) -> bool:
    return value.dtype is DType.F32 and value.rank is not None and value.rank <= 1
