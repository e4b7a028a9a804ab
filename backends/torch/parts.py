"""Repeated parts of a model (`encoder.layer.0`, `encoder.layer.1`, …): one class for equal ones.

A part is what reads the parameters of one number, up to where the next number begins. Nodes between
that depend on no parameter of the group (masks that the first layer builds for all) move before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from regraft.backends.torch.weight_plan import Slot, WeightPlan
from regraft.backends.torch.weight_source import WeightSource, is_inline
from regraft.ir.constants import literal, weight
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.weights import Role

MAX_LITERAL_ELEMENTS = 16
"""Larger literals are arguments of a part: one tensor serves all."""

_MIN_NODES = 4
_NUMBERED = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of several equal parts.

    Args:
        path: Its place in the model: `encoder.layer.0`.
        nodes: Its nodes in order; the n-th node of every part of a group is the same.
        arguments: What it reads from outside, in the group's order.
    """

    path: str
    nodes: tuple[Node, ...]
    arguments: tuple[Value, ...]

    def result(self, place: tuple[int, int]) -> Value:
        """Returns the value at (node, result)."""
        node, idx = place
        return self.nodes[node].outputs[idx]


@dataclass(frozen=True, slots=True, eq=False)
class PartGroup:
    """Equal parts that follow each other.

    Args:
        path: What they are elements of: `encoder.layer`.
        parts: At least two, in order.
        results: (node, result) of what any of them gives to the outside.
        plan: The tensors of the first part under their names within it.
    """

    path: str
    parts: tuple[Part, ...]
    results: tuple[tuple[int, int], ...]
    plan: WeightPlan

    def carried(self) -> dict[int, int] | None:
        """Returns argument -> result when parts hand on what they give and nothing else leaves.

        A loop can then call them: every other argument is the same for all.
        """
        links: dict[int, int] = {}
        for idx, value in enumerate(self.parts[0].arguments):
            if all(part.arguments[idx] is value for part in self.parts):
                continue
            link = self._link(idx)
            if link is None:
                return None
            links[idx] = link
        if sorted(links.values()) != list(range(len(self.results))):
            return None
        if any(self._escapes(part, self.parts[i + 1]) for i, part in enumerate(self.parts[:-1])):
            return None
        return links

    def is_handed_on(self, argument: int) -> bool:
        """Returns whether every part but the first gets this argument from the one before."""
        return self._link(argument) is not None

    def _link(self, argument: int) -> int | None:
        for number, place in enumerate(self.results):
            pairs = pairwise(self.parts)
            if all(b.arguments[argument] is a.result(place) for a, b in pairs):
                return number
        return None

    def _escapes(self, part: Part, following: Part) -> bool:
        inside = {*part.nodes, *following.nodes}
        return any(
            user not in inside for place in self.results for user, _ in part.result(place).uses
        )


def find_parts(graph: Graph, plan: WeightPlan) -> list[PartGroup]:
    """Returns the groups of equal parts; the graph is reordered so that parts are contiguous.

    Cost: O(nodes) for every numbered path that is not within a group.
    """
    groups: list[PartGroup] = []
    for path, numbers in _numbered_paths(plan):
        if any(path.startswith(f"{group.path}.") for group in groups):
            continue
        taken = {node for group in groups for part in group.parts for node in part.nodes}
        groups += _groups_at(graph, plan, path, numbers, taken)
    return groups


def _numbered_paths(plan: WeightPlan) -> list[tuple[str, list[int]]]:
    """Returns paths under which several numbers stand, outer paths first."""
    found: dict[str, set[int]] = {}
    for slot_path in plan.slots:
        for match in _NUMBERED.finditer(slot_path):
            found.setdefault(slot_path[: match.start()].rstrip("."), set()).add(int(match[1]))
    paths = [(path, sorted(numbers)) for path, numbers in found.items() if len(numbers) > 1]
    return sorted(paths, key=lambda item: item[0].count("."))


def _groups_at(
    graph: Graph, plan: WeightPlan, path: str, numbers: Sequence[int], taken: set[Node]
) -> Iterator[PartGroup]:
    plans = {i: _plan_within(plan, _join(path, i)) for i in numbers}
    owner = _owners(graph, plan, path)
    order, starts = _dependent(graph, owner)
    found = sorted(starts, key=lambda number: starts[number])
    if len(found) < 2:
        return
    spans = [(starts[a], starts[b]) for a, b in pairwise(found)]
    length = spans[-1][1] - spans[-1][0]
    spans.append((starts[found[-1]], min(starts[found[-1]] + length, len(order))))
    matcher = _Matcher(plans, owner)
    run: list[int] = []
    runs: list[list[int]] = []
    for idx in range(len(found)):
        nodes = order[slice(*spans[idx])]
        if run and matcher.match(found[run[0]], order[slice(*spans[run[0]])], found[idx], nodes):
            run.append(idx)
            continue
        run = [idx]
        runs.append(run)
    for run in runs:
        chunks = [tuple(order[slice(*spans[idx])]) for idx in run]
        if len(run) < 2 or len(chunks[0]) < _MIN_NODES:
            continue
        if any(node in taken for chunk in chunks for node in chunk):
            continue
        group = matcher.group(path, [found[idx] for idx in run], chunks)
        if group is not None:
            _gather(graph, chunks)
            yield group


def _join(path: str, number: int) -> str:
    return f"{path}.{number}" if path else str(number)


def _plan_within(plan: WeightPlan, path: str) -> WeightPlan:
    """Returns the tensors below a path, under their names there."""
    within = WeightPlan(trees=plan.trees)
    prefix = f"{path}."
    for slot_path, slot in plan.slots.items():
        if slot_path.startswith(prefix):
            rest = slot_path.removeprefix(prefix)
            inner = Slot(rest, slot.tree, slot.role, slot.weight)
            within.slots[rest] = within.held[slot.tree] = inner
            within.occupy(rest)
    return within


def _owners(graph: Graph, plan: WeightPlan, path: str) -> dict[Value, int]:
    """Returns the number under which the tensors of each weight stand, where it is one."""
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\." if path else r"(\d+)\.")
    owner: dict[Value, int] = {}
    for node in graph:
        if node.op is not weight or not node.output.num_uses:
            continue
        name = graph.scope.weights.resolve(node.attrs["name"])
        matches = [pattern.match(leaf.path) for leaf in plan.leaves(plan.trees[name])]
        numbers = {None if match is None else int(match[1]) for match in matches}
        number = numbers.pop() if len(numbers) == 1 else None
        if number is not None:
            owner[node.output] = number
    return owner


def _dependent(graph: Graph, owner: dict[Value, int]) -> tuple[list[Node], dict[int, int]]:
    """Returns the nodes that depend on the group's tensors, and where each number begins."""
    order: list[Node] = []
    starts: dict[int, int] = {}
    inside: set[Node] = set()
    for node in graph:
        if node.op is weight or node.op is literal:
            continue
        depends = False
        for value in node.inputs:
            if value is None:
                continue
            number = owner.get(value)
            if number is not None:
                starts.setdefault(number, len(order))
                depends = True
            elif value.producer in inside:
                depends = True
        if depends:
            order.append(node)
            inside.add(node)
    return order, starts


class _Matcher:
    """Compares parts node by node."""

    def __init__(self, plans: dict[int, WeightPlan], owner: dict[Value, int]) -> None:
        self._plans = plans
        self._sources = {number: WeightSource(plan) for number, plan in plans.items()}
        self._owner = owner

    def match(
        self, number: int, nodes: Sequence[Node], other_number: int, others: Sequence[Node]
    ) -> bool:
        """Returns whether two parts are equal but for what their tensors hold."""
        if len(nodes) != len(others) or not self._same_tensors(number, other_number):
            return False
        places = {v: (i, k) for i, node in enumerate(nodes) for k, v in enumerate(node.outputs)}
        other = {v: (i, k) for i, node in enumerate(others) for k, v in enumerate(node.outputs)}
        return all(
            _same_node(a, b)
            and all(
                self._operand(x, places, number) == self._operand(y, other, other_number)
                for x, y in zip(a.inputs, b.inputs, strict=True)
            )
            for a, b in zip(nodes, others, strict=True)
        )

    def _same_tensors(self, a: int, b: int) -> bool:
        return _registered(self._plans[a]) == _registered(self._plans[b])

    def _operand(
        self, value: Value | None, places: dict[Value, tuple[int, int]], number: int
    ) -> object:
        if value is None:
            return None
        place = places.get(value)
        if place is not None:
            return place
        if self._owner.get(value) == number:
            return self._expression(value, number)
        array = held_content(value)
        if array is not None:
            return (value.type, array.tobytes())
        return ("outside", value.type)

    def _expression(self, value: Value, number: int) -> str:
        node = value.producer
        if node is None or node.graph is None:
            raise AssertionError("a weight without node")
        return self._sources[number].stored(node.graph.scope.weights.resolve(node.attrs["name"]))

    def group(
        self, path: str, numbers: Sequence[int], chunks: Sequence[tuple[Node, ...]]
    ) -> PartGroup | None:
        """Returns the group of equal parts; None when one reads what a later node makes."""
        slots: dict[tuple[Value, ...], None] = {}
        inside = [set(chunk) for chunk in chunks]
        for row in zip(*chunks, strict=True):
            for operands in zip(*(node.inputs for node in row), strict=True):
                first = operands[0]
                if first is None or first.producer in inside[0]:
                    continue
                if held_content(first) is not None or self._owner.get(first) == numbers[0]:
                    continue
                slots.setdefault(tuple(v for v in operands if v is not None))
        columns = list(slots)
        parts = tuple(
            Part(_join(path, number), chunk, tuple(column[i] for column in columns))
            for i, (number, chunk) in enumerate(zip(numbers, chunks, strict=True))
        )
        results: dict[tuple[int, int], None] = {}
        for chunk, own in zip(chunks, inside, strict=True):
            for i, node in enumerate(chunk):
                for k, value in enumerate(node.outputs):
                    if any(user not in own for user, _ in value.uses):
                        results.setdefault((i, k))
        return PartGroup(path, parts, tuple(sorted(results)), self._plans[numbers[0]])


def _registered(plan: WeightPlan) -> dict[str, tuple[object, ...]]:
    """Returns what the class of a part says of its tensors; small constants stand in it."""
    return {
        path: (
            slot.dtype, slot.shape, slot.role,
            slot.weight.numpy().tobytes() if is_inline(slot) else None,
        )
        for path, slot in plan.slots.items()
    }  # fmt: skip


def held_content(value: Value) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """Returns the content of a constant that every part holds itself, None for other values.

    Small literals, and stored numbers that no part owns.
    """
    node = value.producer
    if node is None or node.graph is None:
        return None
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    if node.op is literal:
        array = node.attrs["value"]
        return array if array.size <= MAX_LITERAL_ELEMENTS else None
    if node.op is not weight:
        return None
    store = node.graph.scope.weights
    name = store.resolve(node.attrs["name"])
    if store.role(name) is not Role.CONST or math.prod(store[name].shape) != 1:
        return None
    array = store[name].numpy()
    return array


def _same_node(a: Node, b: Node) -> bool:
    return (
        a.op is b.op
        and not a.bodies
        and not b.bodies
        and len(a.inputs) == len(b.inputs)
        and [v.type for v in a.outputs] == [v.type for v in b.outputs]
        and a.attrs.keys() == b.attrs.keys()
        and all(_same_attribute(a.attrs[name], b.attrs[name]) for name in a.attrs)
    )


def _same_attribute(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    return type(a) is type(b) and a == b


def _gather(graph: Graph, chunks: Sequence[tuple[Node, ...]]) -> None:
    """Moves the nodes among the parts, which depend on none of them, before the first."""
    parts = {node for chunk in chunks for node in chunk}
    first, last = chunks[0][0], chunks[-1][-1]
    others = [node for node in graph if node not in parts]
    before = [node for node in others if node.order < last.order]
    after = [node for node in others if node.order > last.order]
    if any(v is not None and v.producer in parts for node in before for v in node.inputs):
        raise AssertionError(f"a node among the parts after {first!r} depends on them")
    graph.reorder([*before, *(node for chunk in chunks for node in chunk), *after])
