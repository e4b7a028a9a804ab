"""Where weights stand: in the innermost graph that holds all their users.

ONNX Runtime hands every outer value that a body reads to the body at each run, so that a branch
whose weights stand in the main graph pays for each of them.
"""

from __future__ import annotations

from regraft.backends.onnx.storage import Deduplicator
from regraft.ir.constants import weight
from regraft.ir.graph import Graph


def place_in_bodies(graph: Graph) -> dict[str, Graph]:
    """Returns the body in which each weight that only a body reads belongs; cost O(nodes).

    Weights of equal content go together, so that one initializer still serves them all.
    """
    # bodies have copies of the constants they read; the originals may be left unused
    nodes = [node for node in graph.walk() if node.op is weight and node.output.num_uses]
    if all(node.graph is graph for node in nodes):
        return {}
    duplicates = Deduplicator()
    groups: dict[str, tuple[Graph, list[str]]] = {}
    for node in nodes:
        name, home = node.attrs["name"], node.graph
        if home is None:
            raise AssertionError("a weight node outside a graph")
        leader = (
            name if name in groups else duplicates.find(graph.scope.weights[name], name) or name
        )
        if leader in groups:
            known, names = groups[leader]
            groups[leader] = (_innermost_common(known, home), [*names, name])
        else:
            groups[leader] = (home, [name])
    return {name: home for home, names in groups.values() if home is not graph for name in names}


def _innermost_common(a: Graph, b: Graph) -> Graph:
    outer = _enclosing(a)
    return next(graph for graph in _enclosing(b) if graph in outer)


def _enclosing(graph: Graph) -> list[Graph]:
    """Returns the graph and those around it, innermost first."""
    found = [graph]
    while graph.parent is not None and graph.parent.graph is not None:
        graph = graph.parent.graph
        found.append(graph)
    return found
