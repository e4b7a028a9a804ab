"""The residual stream: the value that block after block adds to.

A residual sum adds a branch to the value that the branch was computed from. Sums follow each other
directly (norms inside the branches) or through a norm (norms on the stream).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, conv, einsum, linalg
from regraft.ir.opspec import Trait

_MAX_BRANCH = 4000
_MAX_LINK = 24
_LAYERS = frozenset({linalg.matmul, linalg.gemm, conv.conv, einsum.einsum})
"""What a norm on the stream does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """`output = skip + branch(skip)`.

    Args:
        skip: The stream before.
        branch: What is added.
        node: The sum.
        link: The nodes from the sum before to `skip` (a norm on the stream), in order.
        nodes: The nodes of the branch that depend on `skip`, in order.
    """

    skip: Value
    branch: Value
    node: Node
    link: tuple[Node, ...]
    nodes: tuple[Node, ...]

    @property
    def output(self) -> Value:
        """The stream after."""
        return self.node.outputs[0]


def _candidates(graph: Graph) -> list[Residual]:
    """Returns the sums of a value and what was computed from it, in order.

    Cost: O(nodes); the nodes of a branch are looked at once per sum that encloses them.
    """
    found: list[Residual] = []
    ends: dict[Value, Residual] = {}
    for node in graph:
        if node.op is not arithmetic.add:
            continue
        for idx in (0, 1):
            skip, branch = node.inputs[idx], node.inputs[1 - idx]
            if skip is None or branch is None or not _may_be_stream(skip, branch, node):
                continue
            nodes = _between(skip, branch)
            if nodes:
                sum_ = Residual(skip, branch, node, _link(skip, ends), nodes)
                found.append(sum_)
                ends[sum_.output] = sum_
                break
    return found


def streams(graph: Graph) -> list[list[Residual]]:
    """Returns chains of residual sums (bodies aside), each starting where the one before ended.

    Longer chains win over chains within their branches, and over sums that enclose them.
    """
    chains = _chains(_candidates(graph))
    chains.sort(key=lambda chain: (-len(chain), -sum(len(each.nodes) for each in chain)))
    kept: list[list[Residual]] = []
    sums: set[Node] = set()
    inside: set[Node] = set()
    for chain in chains:
        if any(each.node in inside or not sums.isdisjoint(each.nodes) for each in chain):
            continue
        kept.append(chain)
        sums.update(each.node for each in chain)
        inside.update(node for each in chain for node in each.nodes)
    return kept


def _chains(sums: list[Residual]) -> list[list[Residual]]:
    by_output = {each.output: each for each in sums}
    chains: list[list[Residual]] = []
    place: dict[Residual, int] = {}
    for each in sums:
        start = each.link[0] if each.link else None
        if start is None:
            before = by_output.get(each.skip)
        else:
            before = next((by_output[v] for v in start.inputs if v in by_output), None)
        idx = None if before is None else place.get(before)
        if idx is None or chains[idx][-1] is not before:
            chains.append([])
            idx = len(chains) - 1
        chains[idx].append(each)
        place[each] = idx
    return chains


def _may_be_stream(skip: Value, branch: Value, node: Node) -> bool:
    """Whether the operands have the result's shape and the skip comes first and is used twice."""
    out = node.outputs[0].shape
    if out is None or skip.shape != out or branch.shape != out or branch.producer is None:
        return False
    if skip.num_uses < 2 or Trait.CONSTANT in branch.producer.op.traits:
        return False
    made = skip.producer
    return made is None or (
        Trait.CONSTANT not in made.op.traits and made.is_before(branch.producer)
    )


def _between(skip: Value, branch: Value) -> tuple[Node, ...]:
    """Returns the nodes on the way from `skip` to `branch`, () when there is no way."""
    start = -1 if skip.producer is None else skip.producer.order
    reaches: dict[Node, bool] = {}
    stack: list[tuple[Node, bool]] = [] if branch.producer is None else [(branch.producer, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            reaches[node] = any(
                value is skip
                or (
                    value is not None and value.producer is not None and reaches.get(value.producer)
                )
                for value in node.inputs
            )
            continue
        if node in reaches or node.order <= start:
            continue
        if len(reaches) > _MAX_BRANCH:
            return ()
        reaches[node] = False
        stack.append((node, True))
        stack.extend((v.producer, False) for v in node.inputs if v is not None and v.producer)
    found = [node for node, hit in reaches.items() if hit]
    return tuple(sorted(found, key=lambda node: node.order))


def _link(skip: Value, ends: dict[Value, Residual]) -> tuple[Node, ...]:
    """Returns the few nodes between the sum before and the skip; () when it is the sum itself."""
    if skip in ends:
        return ()
    found: dict[Node, None] = {}
    stack = [skip]
    has_end = False
    while stack:
        value = stack.pop()
        if value in ends:
            has_end = True
            continue
        node = value.producer
        if node is None or Trait.CONSTANT in node.op.traits or node in found:
            continue
        found[node] = None
        if len(found) > _MAX_LINK or node.op in _LAYERS:
            return ()
        stack.extend(_operands(node))
    return tuple(sorted(found, key=lambda node: node.order)) if has_end else ()


def _operands(node: Node) -> Iterator[Value]:
    return (value for value in node.inputs if value is not None)
