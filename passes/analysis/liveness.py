"""Peak activation: the most bytes of intermediate values alive at one time."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.dims import bind
from regraft.ir.graph import Graph, Value
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType


def peak_activation_bytes(graph: Graph, sizes: Mapping[str, int]) -> int | None:
    """Returns the peak of a run in graph order, inputs and outputs included, weights not.

    A node's operands and results are alive together; bodies count as their largest value set.

    Args:
        graph: The graph.
        sizes: A size for every symbol that shapes depend on; defined symbols too when known.

    Returns:
        Bytes, or None when a value's size is unknown.
    """
    last_use: dict[Value, int] = {}
    nodes = [node for node in graph if not node.op.traits & Trait.CONSTANT]
    for i, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None:
                last_use[value] = i
    for value in graph.outputs:
        last_use[value] = len(nodes)
    alive = 0
    for value in graph.inputs:
        size = _nbytes(value, sizes)
        if size is None:
            return None
        alive += size
    peak = alive
    dying: dict[int, list[Value]] = {}
    for value, i in last_use.items():
        if value.producer is None or not value.producer.op.traits & Trait.CONSTANT:
            dying.setdefault(i, []).append(value)
    for i, node in enumerate(nodes):
        inner = 0
        for body in node.bodies:
            body_peak = peak_activation_bytes(body, sizes)
            if body_peak is None:
                return None
            inner = max(inner, body_peak)
        for value in node.outputs:
            size = _nbytes(value, sizes)
            if size is None:
                return None
            alive += size
            if value not in last_use:
                dying.setdefault(i, []).append(value)
        peak = max(peak, alive + inner)
        for value in dying.get(i, ()):
            alive -= _nbytes(value, sizes) or 0
    return peak


def _nbytes(value: Value, sizes: Mapping[str, int]) -> int | None:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype is None or type_.shape is None:
        return None
    total = 1
    for dim in type_.shape:
        size = bind(dim, sizes)
        if not isinstance(size, int):
            return None
        total *= size
    return type_.dtype.nbytes(total)
