"""Recurrences that an ONNX `Scan` holds: its body is computed for all steps at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, reshaping, slicing
from regraft.passes.linearization.lifting import Lifter, Values, log_of
from regraft.passes.linearization.linear_steps import NO_LOGARITHM, product_of
from regraft.passes.linearization.recurrent_form import outer_of, read_states, states_of


@dataclass(frozen=True, slots=True)
class _Body:
    """The body of a scan and what its inputs are outside.

    Attributes:
        node: The scan.
        length: Steps.
    """

    node: Node
    length: DimLike

    @property
    def graph(self) -> Graph:
        """The body."""
        return self.node.bodies[0]

    @property
    def carried(self) -> int:
        """How many states there are."""
        count: int = self.node.attrs["num_carried"]
        return count


@dataclass(frozen=True, slots=True)
class _Source:
    """Inputs of a body that are no states, constants, and states of all steps that are known."""

    b: Builder
    body: _Body
    known: Mapping[Value, Value]

    def __call__(self, values: Values) -> Value | None:
        (value,) = values
        if value in self.known:
            return self.known[value]
        node, inputs = self.body.node, self.body.graph.inputs
        if value in inputs:
            idx = inputs.index(value)
            outer = node.inputs[idx]
            if outer is None:
                return None
            scanned = idx - self.body.carried
            if 0 <= scanned < node.attrs["num_scanned"]:
                return self._in_front(outer, node.attrs["input_axes"][scanned])
            return self._shared(outer)
        if is_constant(value) and value.producer is not None:
            made = value.producer
            return self._shared(self.b.op(made.op, **made.attrs))
        return None

    def _shared(self, value: Value) -> Value:
        if value.rank == 0:
            return value
        return self.b.op(reshaping.unsqueeze, value, axes=(0,))

    def _in_front(self, x: Value, axis: int) -> Value:
        rank = x.rank or 0
        axis %= rank
        rest = [each for each in range(rank) if each != axis]
        return x if axis == 0 else self.b.op(reshaping.transpose, x, perm=(axis, *rest))


def rewrite_scan(node: Node) -> str:
    """Replaces a scan whose state is linear in itself; returns why it does not, or ""."""
    attrs = node.attrs
    if any((*attrs["input_reversed"], *attrs["output_reversed"])):
        return "it runs from the end"
    if attrs["num_carried"] != 1 or not attrs["num_scanned"]:
        return "it has more than one state, or none"
    x, start = node.inputs[1], node.inputs[0]
    if node.graph is None or x is None or start is None or None in (x.shape, start.shape):
        return "the sizes of its operands are not known"
    length = (x.shape or ())[attrs["input_axes"][0]]
    body = _Body(node, length)
    b = Builder(node.graph, node, node.loc)
    state, after = body.graph.inputs[0], body.graph.outputs[0]
    found = _step(state, after)
    if found is None:
        return "its state is no sum of the one before, times a factor, and a gain"
    factor, gain = found
    lifter = Lifter(b, length, _Source(b, body, {}), frozenset({state, after}))
    rank = start.rank or 0
    gains = lifter.of([gain])
    factors = None if factor is None or gains is None else lifter.of([factor])
    if gains is None or (factor is not None and factors is None):
        return lifter.reason
    gains = lifter.with_rank(gains, rank)
    decay = None if factors is None else log_of(b, lifter.with_rank(factors, rank))
    if factors is not None and decay is None:
        return NO_LOGARITHM
    return _outputs(lifter, body, gains, decay)


def _step(state: Value, after: Value) -> tuple[Value | None, Value] | None:
    """Returns the factor, None for 1, and the gain of a state."""
    node = after.producer
    if node is None or node.op is not arithmetic.add:
        return None
    for scaled, gain in (node.inputs[:2], node.inputs[1::-1]):
        if scaled is None or gain is None:
            continue
        if scaled is state:
            return None, gain
        made = scaled.producer
        if made is None or made.op is not arithmetic.mul:
            continue
        for before, factor in (made.inputs[:2], made.inputs[1::-1]):
            if before is state and factor is not None:
                return factor, gain
    return None


def _outputs(lifter: Lifter, body: _Body, gains: Value, decay: Value | None) -> str:
    """Replaces what a scan gives."""
    b, node, T = lifter.b, body.node, body.length
    state, after = body.graph.inputs[0], body.graph.outputs[0]
    start = node.inputs[0]
    assert start is not None, "a state has a first value"
    shape = start.shape or ()
    results = body.graph.outputs[1:]
    read = _read(lifter, body, gains, decay)
    if read is None:
        every, final = states_of(b, decay, gains, start, shape, T)
        first = b.op(reshaping.unsqueeze, start, axes=(0,))
        head = b.op(slicing.slice_, every, starts=(0,), ends=(T - 1,), axes=(0,), steps=(1,))
        earlier = b.op(slicing.concat, first, head, axis=0)
        known = {after: every, state: earlier}
    else:
        known, final = read
    outer = Lifter(b, T, _Source(b, body, known), frozenset({state, after} - set(known)))
    rows = []
    for result, axis in zip(results, node.attrs["output_axes"], strict=True):
        found = outer.of([result])
        if found is None:
            return outer.reason
        rank = result.rank or 0
        wanted = (T, *(result.shape or ()))
        whole = outer.with_rank(found, rank)
        if whole.shape != wanted:
            return "the sizes of its results are not known"
        place = axis % (rank + 1)
        perm = [*range(1, place + 1), 0, *range(place + 1, rank + 1)]
        rows.append(whole if place == 0 else b.op(reshaping.transpose, whole, perm=tuple(perm)))
    for old, new in zip(node.outputs, (final, *rows), strict=True):
        old.replace_all_uses_with(new)
    return ""


def _read(
    lifter: Lifter, body: _Body, gains: Value, decay: Value | None
) -> tuple[dict[Value, Value], Value] | None:
    """Returns the product of every state with one vector, where states are read by that alone."""
    state, after = body.graph.inputs[0], body.graph.outputs[0]
    outer = outer_of(gains, decay)
    users = list(after.users)
    if outer is None or len(users) != 1 or after in body.graph.outputs[1:]:
        return None
    if len(list(state.users)) != 1:
        return None
    found = product_of(after, users[0])
    queries = None if found is None else lifter.of([found[0]])
    start, T = body.node.inputs[0], body.length
    if found is None or queries is None or start is None or start.shape is None:
        return None
    b, shape = lifter.b, start.shape
    wanted = (T, *shape[:-1])
    if (queries.shape or ())[0] != T or queries.rank != len(shape) + 1:
        return None
    queries = b.op(reshaping.reshape, queries, shape=wanted)
    read, final = read_states(b, outer, queries, decay, start, shape, T)
    result = found[1]
    made = b.op(reshaping.reshape, read, shape=(T, *(result.shape or ())))
    return {result: made}, final
