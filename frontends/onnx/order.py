"""Topological order of ONNX nodes; files in the wild are not always sorted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import AttributeProto

from regraft.frontends.onnx.node_import import node_label
from regraft.frontends.onnx.scope import NameScope
from regraft.ir.errors import InputError


def sorted_nodes(proto: onnx.GraphProto, scope: NameScope) -> Sequence[onnx.NodeProto]:
    """Returns the nodes in topological order; the file's order when it already is.

    Raises:
        InputError: When the nodes form a cycle.
    """
    nodes = list(proto.node)
    made: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in node.output:
            if name:
                made[name] = i
    if _is_sorted(nodes, made):
        return nodes
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for i, node in enumerate(nodes):
        # a name that this graph makes and an outer graph has too means this graph's
        sorter.add(i, *sorted({made[name] for name in reads(node) if name in made} - {i}))
        if any(made.get(name) == i for name in reads(node)):
            raise InputError(
                f"node `{node_label(node)}` reads its own result",
                hint="values that a node carries to itself need a Loop or a Scan",
            )
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        cycle = error.args[1]
        names = " -> ".join(f"`{node_label(nodes[i])}`" for i in cycle[:6])
        raise InputError(
            f"the nodes form a cycle: {names}",
            hint="values that are carried around need a Loop or a Scan",
        ) from error
    scope.warnings.append(f"the nodes of graph `{proto.name}` were not sorted; sorted on load")
    return [nodes[i] for i in order]


def _is_sorted(nodes: Sequence[onnx.NodeProto], made: dict[str, int]) -> bool:
    return all(made.get(name, -1) < i for i, node in enumerate(nodes) for name in reads(node))


def operand_names(node: onnx.NodeProto, domain: str) -> Sequence[str]:
    """Returns the names of a node's operands; ONNX Runtime looks at none of a constant."""
    is_constant = node.op_type == "Constant" and domain in ("", "ai.onnx")
    return () if is_constant else node.input


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yields the names that a node reads, those captured by its bodies included."""
    for name in operand_names(node, node.domain):
        if name:
            yield name
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:
            yield from _free_names(attr.g)
        elif attr.type == AttributeProto.GRAPHS:
            for graph in attr.graphs:
                yield from _free_names(graph)


def _free_names(graph: onnx.GraphProto) -> Iterator[str]:
    own = {info.name for info in graph.input}
    own |= {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in reads(node):
            if name not in own:
                yield name
    for info in graph.output:
        if info.name not in own:
            yield info.name
