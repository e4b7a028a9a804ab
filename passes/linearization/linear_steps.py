"""Recurrences written out step by step whose factors and gains are computed at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, gathering, linalg, reduce, reshaping, slicing
from regraft.passes.linearization.lifting import Lifter, Values, log_of
from regraft.passes.linearization.recurrent_form import Outer, outer_of, read_states, states_of
from regraft.passes.linearization.unrolled import part_of

_MIN_STEPS = 3
_ZERO_BYTES = 1 << 24
NO_LOGARITHM = "its factors are neither exponentials nor sigmoids: their logarithms are not known"


@dataclass(frozen=True, slots=True)
class LinearStep:
    """One step, s = f s + u, or s + u.

    Attributes:
        node: The sum.
        before: The state before it.
        factor: What it is multiplied by; None for 1.
        gain: What is added.
        length: Steps up to this one.
        form: Operand of the sum that is added, and of the product that is the state, -1 for none:
            the same for all steps of a line.
    """

    node: Node
    before: Value
    factor: Value | None
    gain: Value
    length: int
    form: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reads:
    """Products of every state with one vector.

    Attributes:
        queries: The vectors, [..., D, 1] or [..., 1, D].
        results: What the products are, one per step.
    """

    queries: Values
    results: Values


def linear_chains(graph: Graph) -> Iterator[list[LinearStep]]:
    """Yields the longest lines of steps, each sum in one of them; cost O(nodes)."""
    best: dict[tuple[Value, tuple[int, int]], LinearStep] = {}
    for node in graph:
        if node.op is arithmetic.add and len(node.outputs) == 1:
            for step in _forms(node, best):
                best[node.output, step.form] = step
    taken: set[Value] = set()
    for last in sorted(best.values(), key=lambda step: -step.length):
        if last.length < _MIN_STEPS or last.node.output in taken:
            continue
        line = [last]
        while line[0].length > 1:
            line.insert(0, best[line[0].before, last.form])
        if taken.isdisjoint(step.node.output for step in line):
            taken.update(step.node.output for step in line)
            yield line


def _forms(
    node: Node, best: Mapping[tuple[Value, tuple[int, int]], LinearStep]
) -> Iterator[LinearStep]:
    """Yields how a sum can be a step; the state has the size of the sum."""
    for slot in (0, 1):
        gain, scaled = node.inputs[slot], node.inputs[1 - slot]
        if scaled is None or gain is None:
            continue
        forms: list[tuple[Value | None, Value | None]] = [(scaled, None)]
        product = scaled.producer
        if product is not None and product.op is arithmetic.mul:
            x, y = product.inputs[:2]
            forms += [(x, y), (y, x)]
        for number, (before, factor) in enumerate(forms):
            if before is None or before.type != node.output.type:
                continue
            form = (slot, number - 1)
            earlier = best.get((before, form))
            length = 1 if earlier is None else earlier.length + 1
            yield LinearStep(node, before, factor, gain, length, form)


def rewrite_steps(line: Sequence[LinearStep]) -> str:
    """Replaces the states of a line, or what reads them; returns why it does not, or ""."""
    first, last, T = line[0].node, line[-1].node, len(line)
    shape = last.output.shape
    if first.graph is None or shape is None or last.output.dtype is None:
        return "the sizes of its states are not known"
    states = tuple(step.node.output for step in line)
    b = Builder(first.graph, first, last.loc)
    lifter = Lifter(b, T, _Source(b, first), frozenset({*states, line[0].before}))
    gains = lifter.of([step.gain for step in line])
    factors = [step.factor for step in line if step.factor is not None]
    lifted = lifter.of(factors) if factors and gains is not None else None
    if gains is None or (factors and lifted is None):
        return lifter.reason
    rank = len(shape)
    gains = lifter.with_rank(gains, rank)
    decay = None
    if lifted is not None:
        decay = log_of(b, lifter.with_rank(lifted, rank))
        if decay is None:
            return NO_LOGARITHM
    start = line[0].before
    if start.producer is not None and start.producer.order > first.order:
        return "its first state is computed between its steps"
    zeros = constant_of(start, _ZERO_BYTES)
    before = None if zeros is not None and not zeros.any() else start
    outer, reads = outer_of(gains, decay), reads_of(line)
    if outer is not None and reads is not None and _rewrite_reads(
        lifter, outer, reads, decay, before, last.output
    ):  # fmt: skip
        return ""
    every, final = states_of(b, decay, gains, before, shape, T)
    for number, state in enumerate(states[:-1]):
        row = b.op(gathering.gather, every, b.constant(np.int64(number)), axis=0)
        state.replace_all_uses_with(row)
    last.output.replace_all_uses_with(final)
    return ""


def _rewrite_reads(
    lifter: Lifter, outer: Outer, reads: Reads, decay: Value | None, before: Value | None,
    last: Value,
) -> bool:  # fmt: skip
    b, shape = lifter.b, last.shape or ()
    queries = lifter.of(reads.queries)
    if queries is None or queries.rank != len(shape) + 1:
        return False
    T = lifter.length
    wanted = (T, *shape[:-1])
    queries = b.op(reshaping.reshape, queries, shape=((queries.shape or ())[0], *shape[:-1]))
    if queries.shape != wanted:
        return False
    found, final = read_states(b, outer, queries, decay, before, shape, T)
    for number, old in enumerate(reads.results):
        row = b.op(gathering.gather, found, b.constant(np.int64(number)), axis=0)
        old.replace_all_uses_with(b.op(reshaping.reshape, row, shape=old.shape or ()))
    last.replace_all_uses_with(final)
    return True


def reads_of(line: Sequence[LinearStep]) -> Reads | None:
    """Returns how states are read, None where one is read in another way than by one product."""
    queries, results = [], []
    for number, step in enumerate(line):
        state = step.node.output
        later = line[number + 1] if number + 1 < len(line) else None
        readers = [user for user in state.users if later is None or not _is_part(user, later)]
        found = [product_of(state, user) for user in readers]
        if len(found) != 1 or found[0] is None:
            return None
        queries.append(found[0][0])
        results.append(found[0][1])
    return Reads(tuple(queries), tuple(results))


def _is_part(user: Node, step: LinearStep) -> bool:
    return user is step.node or user.output in step.node.inputs


def product_of(state: Value, user: Node) -> tuple[Value, Value] | None:
    """Returns the vector [..., D, 1] or [..., 1, D] and the product of a matrix [..., D, E]."""
    rank = state.rank or 0
    if user.op is linalg.matmul and user.inputs[1] is state:
        q = user.inputs[0]
        if q is not None and q.rank == rank and (q.shape or ())[-2] == 1:
            return q, user.output
    if user.op is not arithmetic.mul:
        return None
    q = user.inputs[0] if user.inputs[1] is state else user.inputs[1]
    users = list(user.output.users)
    if q is None or q.rank != rank or (q.shape or ())[-1] != 1 or len(users) != 1:
        return None
    axes = users[0].attrs["axes"] if users[0].op is reduce.reduce_sum else None
    return (q, users[0].output) if axes in ((rank - 2,), (-2,)) else None


@dataclass(frozen=True, slots=True)
class _Source:
    """Positions of tensors, and what is the same at every step, that is there before the first."""

    b: Builder
    first: Node

    def __call__(self, values: Values) -> Value | None:
        head = values[0]
        if all(value is head for value in values[1:]):
            if head.rank == 0 and self._is_there(head):
                return head
            return self.b.op(reshaping.unsqueeze, head, axes=(0,)) if self._is_there(head) else None
        parts = [part_of(value) for value in values]
        begin = parts[0]
        if begin is None or not self._is_there(begin.of):
            return None
        for number, part in enumerate(parts):
            if part is None or (part.of, part.axis) != (begin.of, begin.axis):
                return None
            if part.number != begin.number + number:
                return None
        x, axis, count = begin.of, begin.axis, len(values)
        if (x.shape or ())[axis] != count:
            x = self.b.op(
                slicing.slice_, x, starts=(begin.number,), ends=(begin.number + count,),
                axes=(axis,), steps=(1,),
            )  # fmt: skip
        rest = [each for each in range(x.rank or 0) if each != axis]
        return x if axis == 0 else self.b.op(reshaping.transpose, x, perm=(axis, *rest))

    def _is_there(self, value: Value) -> bool:
        return value.producer is None or value.producer.order < self.first.order
