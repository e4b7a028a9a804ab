"""The coupling graph: which groups meet in which nodes, for partitions and pictures."""

from __future__ import annotations

import networkx as nx

from regraft.passes.analysis.coupling.groups import Coupling


def coupling_graph(coupling: Coupling) -> nx.Graph:
    """Returns a bipartite graph of groups (by name) and the nodes that use what they stand in.

    A group has `size` and `kind`, a node `op`; an edge has the axes by which they meet.
    """
    graph = nx.Graph()
    for group in coupling.groups:
        graph.add_node(group.name, size=group.size, kind=group.kind)
        for value, axis in group.values:
            for user in value.users:
                graph.add_node(user, op=user.op.name)
                if not graph.has_edge(group.name, user):
                    graph.add_edge(group.name, user, axes=set())
                graph.edges[group.name, user]["axes"].add(axis)
    return graph
