"""The cut of a rewrite: the nodes before and after it, down to values that both depend on.

A rule replaces the results of a node by other values and claims that they are equal. The cut holds
what computes the one and the other, above a frontier of free values. Equality for free values of
the frontier proves the rewrite; when it does not hold, the frontier is lowered: rules may rely on
what computes it (`relu(relu(x)) -> relu(x)` compares a value with itself through one node).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, opaque, weight
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import Trait

MAX_NODES = 64
"""Most nodes of a cut; a frontier further down is not looked for."""

OLD, NEW = 1, 2

_MAX_KEY_BYTES = 64
"""Constants up to this size (axes, scalars) are told apart by content."""

_MAX_KIND_BYTES = 1 << 20
"""Larger weights are not read for their kind."""


@dataclass(slots=True)
class Cut:
    """What computes the old and the new values, above free values.

    Attributes:
        old: Results of the node that is replaced, those that are used.
        new: The values that replace them.
        frontier: Free values, with the sides (`OLD`, `NEW`) that use each.
        sides: Nodes of the cut with the sides that use each; constants are among them.
    """

    old: tuple[Value, ...]
    new: tuple[Value, ...]
    frontier: dict[Value, int] = field(default_factory=dict)
    sides: dict[Node, int] = field(default_factory=dict)

    def nodes(self, side: int) -> list[Node]:
        """Returns the nodes of one side in topological order."""
        found = [node for node, sides in self.sides.items() if sides & side]
        return sorted(found, key=lambda node: node.order)

    @property
    def is_full(self) -> bool:
        """Whether no further node fits."""
        return len(self.sides) >= MAX_NODES

    @property
    def new_sees_more(self) -> bool:
        """Whether the new values depend on free values that the old ones do not see."""
        return any(sides == NEW for sides in self.frontier.values())

    @property
    def is_closed(self) -> bool:
        """Whether both sides use every value of the frontier that could be lowered."""
        return next(_one_sided(self), None) is None

    def key(self, kinds: dict[str, Hashable]) -> Hashable:
        """Returns what repeated layers share: structure, types, kinds of constants.

        Args:
            kinds: Kinds of weights by name, filled in here: reading them costs.
        """
        numbers: dict[Value, int] = {}
        for value in self.frontier:
            numbers[value] = len(numbers)
        parts: list[Hashable] = [
            (value.type, value.content, sides) for value, sides in self.frontier.items()
        ]
        for node in sorted(self.sides, key=lambda n: n.order):
            operands = tuple(-1 if v is None else numbers[v] for v in node.inputs)
            parts.append((node.op.name, _attrs_key(node, kinds), operands, self.sides[node]))
            for value in node.outputs:
                numbers[value] = len(numbers)
        parts.append(tuple(numbers[value] for value in (*self.old, *self.new)))
        return tuple(parts)


def _attrs_key(node: Node, kinds: dict[str, Hashable]) -> Hashable:
    if node.op is weight:
        name = node.attrs["name"]
        if name not in kinds:
            array = constant_of(node.output, _MAX_KIND_BYTES)
            kinds[name] = "large" if array is None else _kind(array)
        return node.output.type, kinds[name]
    if node.bodies:
        return id(node)  # bodies are not compared: every control flow node is its own structure
    return tuple(_plain(value) for value in node.attrs.values())


def _kind(array: np.ndarray[Any, Any]) -> Hashable:
    """Returns what a rule may ask of a constant: its one value, or that it has several.

    A rule that is right for a bias of zeros is not thereby right for the next layer's.
    """
    if array.nbytes <= _MAX_KEY_BYTES:
        return array.tobytes()
    flat = array.reshape(-1)
    return flat[:1].tobytes() if bool((flat == flat[0]).all()) else "varied"


def _plain(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), _kind(value))
    if isinstance(value, float):
        return repr(value)  # NaN equals itself here, 0.0 and -0.0 differ
    return value if isinstance(value, Hashable) else repr(value)


def first_cut(node: Node, values: Sequence[Value], made: Sequence[Node]) -> Cut:
    """Returns the highest cut: the replaced node on one side, nodes that a rule made on the other.

    Args:
        node: The node whose results are replaced.
        values: The new values, one per result.
        made: Nodes that the rule made; those that `values` do not need are left out.
    """
    pairs = [(o, n) for o, n in zip(node.outputs, values, strict=True) if o.num_uses]
    cut = Cut(tuple(o for o, _ in pairs), tuple(n for _, n in pairs))
    fresh = set(made)
    for value in cut.old:
        _need(cut, value, OLD, {node})
    for value in cut.new:
        _need(cut, value, NEW, fresh)
    return cut


def _need(cut: Cut, value: Value, side: int, inside: set[Node]) -> None:
    """Adds a value to the frontier, or its producer to the cut when it belongs there."""
    stack = [value]
    while stack:
        value = stack.pop()
        producer = value.producer
        if producer is not None and (
            producer in inside or producer in cut.sides or Trait.CONSTANT in producer.op.traits
        ):
            known = cut.sides.get(producer, 0)
            if known & side != side:
                cut.sides[producer] = known | side
                stack.extend(v for v in producer.inputs if v is not None)
            continue
        cut.frontier[value] = cut.frontier.get(value, 0) | side


def close(cut: Cut) -> bool:
    """Lowers the frontier where only one side uses it, latest node first, until both sides meet.

    Returns:
        Whether anything was added.
    """
    changed = False
    heap = list(_one_sided(cut))
    heapq.heapify(heap)
    while heap and not cut.is_full:
        _, _, value = heapq.heappop(heap)
        sides = cut.frontier.get(value)
        if sides is None or sides == OLD | NEW:
            continue
        before = set(cut.frontier)
        _lower(cut, value)
        changed = True
        for entry in _one_sided(cut):
            if entry[2] not in before:
                heapq.heappush(heap, entry)
    return changed


def deepen(cut: Cut) -> bool:
    """Lowers the frontier by one node everywhere; returns whether anything was added."""
    changed = False
    for value in sorted(cut.frontier, key=lambda v: -_order(v)):
        if cut.is_full:
            break
        if value in cut.frontier and _can_lower(value):
            _lower(cut, value)
            changed = True
    return changed


def _one_sided(cut: Cut) -> Iterator[tuple[int, int, Value]]:
    for value, sides in cut.frontier.items():
        if sides != OLD | NEW and _can_lower(value):
            yield -_order(value), value.index, value


def _order(value: Value) -> int:
    return -(1 << 62) if value.producer is None else value.producer.order


def _can_lower(value: Value) -> bool:
    producer = value.producer
    return (
        producer is not None
        and producer.op is not opaque
        and producer.op.eval is not None
        and producer.op.is_pure
    )


def _lower(cut: Cut, value: Value) -> None:
    producer = value.producer
    if producer is None:
        raise AssertionError(f"{value!r} has no producer")
    for result in producer.outputs:
        sides = cut.frontier.pop(result, 0)
        for side in (OLD, NEW):
            if sides & side:
                _need(cut, result, side, {producer})
