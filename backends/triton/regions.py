"""Partitions a graph into convex regions, each of which one generated kernel computes.

A region is a set of element-wise nodes, reductions over the last axes, norms and softmaxes of
rows, whose values all broadcast to one shape. Two regions are merged, those that share most bytes
first, when the time that a model of the memory and the launches gives is less than that of both.
Every region has an anchor, the node at whose place it is computed: after all that it reads, before
all that reads it. So no merge ever makes a cycle. Last, a cheap node that several regions read
is computed again in each, where that costs less than a tensor between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from regraft.backends.triton.channel_groups import groups_of
from regraft.backends.triton.region_nodes import (
    REDUCTIONS,
    ROW_OPS,
    Shape,
    bytes_of,
    columns_of,
    common_space,
    inputs_of,
    is_computable,
    outputs_of,
    reads_of,
    row_shape,
    seconds_of,
    separate_seconds_of,
    separate_traffic_of,
    takes,
    traffic_of,
    values_of,
)
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops.norm import group_norm


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Nodes that one kernel computes.

    Args:
        nodes: In the order of the graph.
        inputs: Values from outside, numbers aside, in the order of their first use.
        outputs: Values that something outside reads.
        anchor: The node at whose place the kernel is called; it gives one of the outputs.
        space: The shape that all values broadcast to.
        again: Nodes that other regions compute too.
        seconds: Estimated time.
        separate_seconds: Estimated time of the nodes one by one.
        saved_bytes: Bytes that are neither written nor read, by the same estimate.
        columns: How many of the last axes are the columns of a row; the others are rows.
        groups: Into how many rows the columns of an image are split along its channels; 0 where
            they are one.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    anchor: Node
    space: Shape
    again: tuple[Node, ...]
    seconds: float
    separate_seconds: float
    saved_bytes: int
    columns: int = 1
    groups: int = 0


@dataclass(slots=True, eq=False)
class _Draft:
    """A region while regions grow."""

    nodes: list[Node]
    anchor: Node
    seconds: float
    again: list[Node] = field(default_factory=list)


def _is_worth(draft: _Draft) -> bool:
    """Whether PyTorch's own operators take more than one launch for a draft."""
    return len(draft.nodes) > 1 or draft.anchor.op is group_norm


class Partition:
    """The regions of a list of nodes.

    Args:
        nodes: In order.
        left: Nodes that are computed otherwise.
        places: Those of them that are computed where a later node stands, with that node.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        left: Iterable[Node] = (),
        places: Mapping[Node, Node] | None = None,
    ) -> None:
        self._moved = places or {}
        self._places = {node: idx for idx, node in enumerate(nodes)}
        self._left = set(left)
        self.graph = nx.DiGraph()
        for node in nodes:
            if node not in self._left and takes(node):
                self.graph.add_node(node)
        self._drafts = {
            node: _Draft([node], node, seconds_of([node], set())) for node in self.graph
        }
        for node in self.graph:
            for value in reads_of(node):
                if value.producer in self._drafts:
                    shared = bytes_of(value)
                    self.graph.add_edge(value.producer, node, bytes=shared)
        self._merge()
        self._repeat()

    def regions(self) -> list[Region]:
        """Returns the regions of more than one launch, in the order of their anchors."""
        drafts = dict.fromkeys(self._drafts.values())
        made = [self._finished(draft) for draft in drafts if _is_worth(draft)]
        return sorted(made, key=lambda region: self._places[region.anchor])

    def together(self, node: Node) -> tuple[Node, ...]:
        """Returns the nodes that a node is computed with."""
        draft = self._drafts.get(node)
        return () if draft is None else tuple(draft.nodes)

    # -- merging ----------------------------------------------------------------------------

    def _merge(self) -> None:
        """Merges along edges, most bytes first, until nothing is gained; cost O(edges * nodes)."""
        edges = sorted(
            self.graph.edges(data="bytes"),
            key=lambda edge: (-edge[2], self._places[edge[1]], self._places[edge[0]]),
        )
        is_changed = True
        while is_changed:
            is_changed = False
            for producer, user, _ in edges:
                one, two = self._drafts[producer], self._drafts[user]
                if one is not two and self._merge_two(one, two):
                    is_changed = True

    def _merge_two(self, one: _Draft, two: _Draft) -> bool:
        nodes = sorted([*one.nodes, *two.nodes], key=self._places.__getitem__)
        if not is_computable(nodes, set()):
            return False
        seconds = seconds_of(nodes, set())
        anchor = self._anchor(nodes) if seconds < one.seconds + two.seconds else None
        if anchor is None:
            return False
        merged = _Draft(nodes, anchor, seconds)
        self._drafts.update(dict.fromkeys(nodes, merged))
        return True

    def _anchor(self, nodes: Sequence[Node]) -> Node | None:
        """Returns a node at whose place all inputs are there and nothing reads a result yet."""
        inside = set(nodes)
        first, last = 0, len(self._places)
        for node in nodes:
            for value in reads_of(node):
                made = value.producer
                if made in inside:
                    continue
                # what this list does not hold is there where the node stands, no sooner
                place = self._place(made) if made in self._places else self._places[node] - 1
                first = max(first, place + 1)
        outputs = outputs_of(nodes)
        for value in outputs:
            for user, _ in value.uses:
                if user in inside or isinstance(user, Graph):
                    continue
                is_known = user in self._places
                last = min(last, self._place(user) if is_known else self._end(value.producer))
        makers = {value.producer for value in outputs}
        for node in reversed(nodes):
            if node in makers and first <= self._places[node] < last:
                return node
        return None

    def _end(self, producer: Node | None) -> int:
        return 0 if producer is None else self._places[producer] + 1

    def _place(self, node: Node | None) -> int:
        """Returns where a node is computed."""
        if node is None or node not in self._places:
            return -1
        draft = self._drafts.get(node)
        if draft is None:
            return self._places[self._moved.get(node, node)]
        return self._places[draft.anchor]

    # -- computing again --------------------------------------------------------------------

    def _repeat(self) -> None:
        """Computes a node in every region that reads it, where that costs less than its result."""
        for node in list(self.graph):
            own, users = self._drafts[node], node.outputs[0].users
            if node.op in REDUCTIONS | ROW_OPS or node.outputs[0].is_output:
                continue
            if len(own.nodes) > 1 and own.anchor is node:
                continue
            if any(value.producer in own.nodes for value in reads_of(node)):
                continue  # what it reads is not there for others
            readers = dict.fromkeys(self._drafts.get(user) for user in users)
            readers.pop(own, None)
            others = [draft for draft in readers if draft is not None and len(draft.nodes) > 1]
            is_alone = len(own.nodes) == 1
            if len(others) != len(readers) or len(others) < (2 if is_alone else 1):
                continue
            drafts = others if is_alone else [own, *others]
            grown = [sorted({*draft.nodes, node}, key=self._places.__getitem__) for draft in drafts]
            again = [{*draft.again, node} for draft in drafts]
            seconds = [seconds_of(*each) for each in zip(grown, again, strict=True)]
            before = sum(draft.seconds for draft in dict.fromkeys([own, *others]))
            if sum(seconds) >= before or not all(map(is_computable, grown, again)):
                continue
            for draft, nodes, time in zip(drafts, grown, seconds, strict=True):
                draft.seconds, draft.nodes = time, nodes
                draft.again.append(node)
            self._drafts[node] = max(drafts, key=lambda draft: self._places[draft.anchor])

    # -- results ----------------------------------------------------------------------------

    def _finished(self, draft: _Draft) -> Region:
        nodes, again = tuple(draft.nodes), set(draft.again)
        inside = set(nodes)
        shapes = [row_shape(value, inside) or () for value in values_of(nodes)]
        space = common_space(shapes) or ()
        separate = sum(separate_traffic_of(node) for node in nodes if node not in again)
        return Region(
            nodes,
            tuple(inputs_of(nodes)),
            tuple(outputs_of(nodes, again)),
            draft.anchor,
            space,
            tuple(draft.again),
            draft.seconds,
            sum(map(separate_seconds_of, nodes)),
            separate - traffic_of(nodes, again),
            columns_of(nodes, space),
            groups_of(nodes) or 0,
        )

    def quotient(self) -> nx.DiGraph:
        """Returns the graph of what is computed at one place each; it has no cycle."""
        found = nx.DiGraph()
        for node in self._places:
            found.add_node(self._place(node))
            for value in node.inputs:
                made = None if value is None else value.producer
                if made not in self._places or self._place(made) == self._place(node):
                    continue
                if made not in self._drafts or made not in self._drafts[made].again:
                    found.add_edge(self._place(made), self._place(node))
        return found
