"""Recurrences that were written out step by step: chains of s = a_t s + u_t, by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, gathering, linalg, reshaping

_MIN_STEPS = 2
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One position of a tensor that is stepped through.

    Attributes:
        of: The tensor.
        axis: Along which it is stepped through.
        number: The position.
    """

    of: Value
    axis: int
    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step, s = a s + u.

    Attributes:
        node: The sum.
        before: The state before it.
        factor: What it is multiplied by.
        gain: What is added.
    """

    node: Node
    before: Value
    factor: Part
    gain: Part


@dataclass(frozen=True, slots=True)
class Chain:
    """A recurrence over all positions of its tensors.

    Attributes:
        steps: In order; the first may be missing where the state begins at zero.
        start: The state before the first position; None for zeros.
        factors: Tensor of the factors, and the axis of its positions.
        gains: The same of what is added.
        length: Positions.
    """

    steps: tuple[Step, ...]
    start: Value | None
    factors: Part
    gains: Part
    length: int

    @property
    def states(self) -> list[Value]:
        """The state behind every position."""
        made = [step.node.output for step in self.steps]
        return made if len(made) == self.length else [self.steps[0].before, *made]


def part_of(value: Value | None) -> Part | None:
    """Returns what position of what tensor a value is, None where it is no such thing."""
    node = None if value is None else value.producer
    if node is None or node.op is not gathering.gather:
        return None
    table, index = node.inputs[:2]
    found = constant_of(index, _INDEX_BYTES)
    if table is None or table.rank is None or found is None or np.ndim(found) != 0:
        return None
    axis = node.attrs["axis"] % table.rank
    return Part(table, axis, int(found))


def chains(graph: Graph) -> Iterator[Chain]:
    """Yields the recurrences of a graph; cost O(nodes)."""
    steps = {step.node.output: step for node in graph if (step := _step(node)) is not None}
    followed = {step.before for step in steps.values()}
    for last in steps:
        if last in followed and any(
            step.before is last and _continues(steps[last], step) for step in steps.values()
        ):
            continue
        line = [steps[last]]
        while line[0].before in steps and _continues(steps[line[0].before], line[0]):
            line.insert(0, steps[line[0].before])
        chain = _chain(line)
        if chain is not None:
            yield chain


def _continues(a: Step, b: Step) -> bool:
    """Whether step b is at the position behind step a's."""
    return (
        b.factor.of is a.factor.of
        and b.gain.of is a.gain.of
        and b.gain.number == a.gain.number + 1
        and b.factor.number == a.factor.number + 1
    )


def _step(node: Node) -> Step | None:
    if node.op is not arithmetic.add:
        return None
    for scaled, gain in (node.inputs[:2], node.inputs[1::-1]):
        product = None if scaled is None else scaled.producer
        added = part_of(gain)
        if product is None or product.op is not arithmetic.mul or added is None:
            continue
        for factor, before in (product.inputs[:2], product.inputs[1::-1]):
            found = part_of(factor)
            if found is not None and before is not None and found.number == added.number:
                return Step(node, before, found, added)
    return None


def _chain(line: list[Step]) -> Chain | None:
    """Returns the recurrence of steps that begin at the first position and end at the last."""
    first, last = line[0], line[-1]
    length = (first.gain.of.shape or ())[first.gain.axis]
    if not isinstance(length, int) or last.gain.number != length - 1 or len(line) < _MIN_STEPS:
        return None
    if (first.factor.of.shape or ())[first.factor.axis] != length:
        return None
    start: Value | None = first.before
    if first.gain.number == 1:  # the first state is what is added at position 0
        if part_of(first.before) != Part(first.gain.of, first.gain.axis, 0):
            return None
        start = None
    elif first.gain.number != 0:
        return None
    return Chain(tuple(line), start, first.factor, first.gain, length)


def reads(chain: Chain) -> tuple[Part, list[Node]] | str:
    """Returns the tensor that states are multiplied by, with the products, or why there is none."""
    found: list[Node] = []
    table: Part | None = None
    inner = {step.node for step in chain.steps}
    for number, state in enumerate(chain.states):
        users = [
            user for user in state.users
            if not any(out in inner for value in user.outputs for out in value.users)
        ]  # fmt: skip
        if len(users) != 1 or users[0].op is not linalg.matmul or users[0].inputs[0] is not state:
            return "its states are read in another way than by a product with one vector each"
        column = users[0].inputs[1]
        part = part_of(column)
        if part is None and column is not None and column.producer is not None:
            made = column.producer
            lost = made.inputs[0] if made.op in (reshaping.reshape, reshaping.unsqueeze) else None
            part = part_of(lost)
        if part is None or part.number != number or (table is not None and part.of is not table.of):
            return "the vectors that states are multiplied by are not steps of one tensor"
        if (column is None or column.shape is None) or column.shape[-1] != 1:
            return "states are multiplied by matrices"
        table = table or part
        found.append(users[0])
    return "it has no steps" if table is None else (table, found)
