"""Peak activation: the most bytes of intermediate values alive at one time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.ir.dims import bind
from regraft.ir.graph import Graph, Node, Value
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
    nodes = _computed(graph)
    sizes_of: dict[Value, int] = {}
    for value in (*graph.inputs, *(value for node in nodes for value in node.outputs)):
        size = _nbytes(value, sizes)
        if size is None:
            return None
        sizes_of[value] = size
    dying = _dying(graph, nodes)
    alive = sum(sizes_of[value] for value in graph.inputs)
    peak = alive
    for i, node in enumerate(nodes):
        inner = [peak_activation_bytes(body, sizes) for body in node.bodies]
        known = [size for size in inner if size is not None]
        if len(known) < len(inner):
            return None
        alive += sum(sizes_of[value] for value in node.outputs)
        peak = max(peak, alive + max(known, default=0))
        alive -= sum(sizes_of.get(value, 0) for value in dying.get(i, ()))
    return peak


def _computed(graph: Graph) -> list[Node]:
    """Returns the nodes but constants, and what moves those, which a runtime does at its start."""
    stored: set[Value] = set()
    found: list[Node] = []
    for node in graph:
        is_moved = bool(node.op.traits & Trait.DATA_MOVEMENT) and bool(node.inputs)
        if node.op.traits & Trait.CONSTANT or (
            is_moved and all(value is None or value in stored for value in node.inputs)
        ):
            stored.update(node.outputs)
        else:
            found.append(node)
    return found


def _dying(graph: Graph, nodes: Sequence[Node]) -> dict[int, list[Value]]:
    """Returns the values that die behind each node, by the node's position."""
    last_use: dict[Value, int] = {}
    for i, node in enumerate(nodes):
        last_use.update(dict.fromkeys(node.outputs, i))
        last_use.update((value, i) for value in node.inputs if value is not None)
    last_use.update((value, len(nodes)) for value in graph.outputs)
    dying: dict[int, list[Value]] = {}
    for value, i in last_use.items():
        dying.setdefault(i, []).append(value)
    return dying


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
