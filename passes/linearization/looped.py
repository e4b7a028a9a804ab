"""Recurrences that an ONNX `Scan` or `Loop` holds: its body is computed for all steps at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike, known_equal
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, control, gathering, reshaping, slicing
from regraft.passes.linearization.lifting import Lifter, Values, log_of
from regraft.passes.linearization.linear_steps import NO_LOGARITHM, product_of
from regraft.passes.linearization.recurrent_form import outer_of, read_states, states_of


@dataclass(frozen=True, slots=True)
class _Body:
    """The body of a loop with one state, and what its inputs are outside.

    Attributes:
        node: The loop or scan.
        length: Steps.
        start: The state before the first.
        state: The body's input.
        after: The body's output.
        stepped: Inputs that are positions, with the tensor and the axis.
        shared: Inputs that are the same at every step, with the value outside.
        counter: The number of the step, where the body has it.
        results: What is collected over all steps.
        axes: Along which axes.
    """

    node: Node
    length: DimLike
    start: Value
    state: Value
    after: Value
    stepped: Mapping[Value, tuple[Value, int]]
    shared: Mapping[Value, Value]
    counter: Value | None
    results: Sequence[Value]
    axes: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Source:
    """Inputs of a body that are no states, constants, and states of all steps that are known."""

    b: Builder
    body: _Body
    known: Mapping[Value, Value]

    def __call__(self, values: Values) -> Value | None:
        (value,) = values
        body = self.body
        if value in self.known:
            return self.known[value]
        if value in body.stepped:
            return self._in_front(*body.stepped[value])
        if value in body.shared:
            return self._shared(body.shared[value])
        made = value.producer
        if made is None:
            return None
        if is_constant(value):
            return self._shared(self.b.op(made.op, **made.attrs))
        table, index = (*made.inputs, None)[:2]
        if made.op is not gathering.gather or table is None or table not in body.shared:
            return None
        if self._counts(index):
            return self._positions(body.shared[table], made.attrs["axis"], value)
        return None

    def _counts(self, index: Value | None) -> bool:
        """Whether an index is the number of the step, by itself or as a list of one."""
        if index is None or self.body.counter is None:
            return False
        made = index.producer
        if made is not None and made.op in (reshaping.reshape, reshaping.unsqueeze):
            index = made.inputs[0]
        return index is self.body.counter

    def _positions(self, x: Value, axis: int, value: Value) -> Value:
        T, axis = self.body.length, axis % (x.rank or 1)
        if not known_equal((x.shape or ())[axis], T):
            x = self.b.op(slicing.slice_, x, starts=(0,), ends=(T,), axes=(axis,), steps=(1,))
        found = self._in_front(x, axis)
        if value.rank == x.rank:  # a list of one index keeps the axis
            found = self.b.op(reshaping.unsqueeze, found, axes=(axis + 1,))
        return found

    def _shared(self, value: Value) -> Value:
        if value.rank == 0:
            return value
        return self.b.op(reshaping.unsqueeze, value, axes=(0,))

    def _in_front(self, x: Value, axis: int) -> Value:
        rank = x.rank or 0
        axis %= rank
        rest = [each for each in range(rank) if each != axis]
        return x if axis == 0 else self.b.op(reshaping.transpose, x, perm=(axis, *rest))


def rewrite_loop(node: Node) -> str:
    """Replaces a loop or scan whose state is linear in itself; returns why not, or ""."""
    body = _of_scan(node) if node.op is control.scan else _of_loop(node)
    if isinstance(body, str):
        return body
    if node.graph is None or body.start.shape is None:
        return "the sizes of its operands are not known"
    b = Builder(node.graph, node, node.loc)
    found = _step(body.state, body.after)
    if found is None:
        return "its state is no sum of the one before, times a factor, and a gain"
    factor, gain = found
    lifter = Lifter(b, body.length, _Source(b, body, {}), frozenset({body.state, body.after}))
    rank = body.start.rank or 0
    gains = lifter.of([gain])
    factors = None if factor is None or gains is None else lifter.of([factor])
    if gains is None or (factor is not None and factors is None):
        return lifter.reason
    gains = lifter.with_rank(gains, rank)
    decay = None if factors is None else log_of(b, lifter.with_rank(factors, rank))
    if factors is not None and decay is None:
        return NO_LOGARITHM
    return _outputs(lifter, body, gains, decay)


def _of_scan(node: Node) -> _Body | str:
    attrs, graph = node.attrs, node.bodies[0]
    if any((*attrs["input_reversed"], *attrs["output_reversed"])):
        return "it runs from the end"
    count = attrs["num_scanned"]
    if attrs["num_carried"] != 1 or not count:
        return "it has more than one state, or none"
    start, *operands = node.inputs
    outer = [value for value in operands if value is not None]
    if start is None or len(outer) != len(operands) or outer[0].shape is None:
        return "the sizes of its operands are not known"
    scanned = zip(graph.inputs[1:], zip(outer, attrs["input_axes"], strict=False), strict=False)
    stepped: dict[Value, tuple[Value, int]] = dict(scanned)
    shared = dict(zip(graph.inputs[1 + count :], outer[count:], strict=True))
    return _Body(
        node, outer[0].shape[attrs["input_axes"][0]], start, graph.inputs[0], graph.outputs[0],
        stepped, shared, None, graph.outputs[1:], attrs["output_axes"],
    )  # fmt: skip


def _of_loop(node: Node) -> _Body | str:
    graph, length = node.bodies[0], control.trip_count(node)
    if node.attrs["num_carried"] != 1:
        return "it has more than one state, or none"
    if length is None:
        return "how often it runs is known at run time only"
    start, *operands = node.inputs[2:]
    outer = [value for value in operands if value is not None]
    if start is None or len(outer) != len(operands):
        return "the sizes of its operands are not known"
    shared = dict(zip(graph.inputs[3:], outer, strict=True))
    results = graph.outputs[2:]
    return _Body(
        node, length, start, graph.inputs[2], graph.outputs[1], {}, shared, graph.inputs[0],
        results, (0,) * len(results),
    )  # fmt: skip


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
    state, after, start = body.state, body.after, body.start
    shape = start.shape or ()
    read = _read(lifter, body, gains, decay)
    if read is None:
        every, final = states_of(b, decay, gains, start, shape, T)
        first = b.op(reshaping.unsqueeze, start, axes=(0,))
        both = b.op(slicing.concat, first, every, axis=0)
        earlier = b.op(slicing.slice_, both, starts=(0,), ends=(T,), axes=(0,), steps=(1,))
        known = {after: every, state: earlier}
    else:
        known, final = read
    outer = Lifter(b, T, _Source(b, body, known), frozenset({state, after} - set(known)))
    rows = []
    for result, axis in zip(body.results, body.axes, strict=True):
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
    state, after, start, T = body.state, body.after, body.start, body.length
    outer = outer_of(gains, decay)
    users = list(after.users)
    if outer is None or len(users) != 1 or after in body.results:
        return None
    if len(list(state.users)) != 1:
        return None
    found = product_of(after, users[0])
    queries = None if found is None else lifter.of([found[0]])
    if found is None or queries is None or start.shape is None:
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
