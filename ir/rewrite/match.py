"""The matcher: backtracking over commutative orders and alternatives, rooted at one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import Trait
from regraft.ir.rewrite.explain import Trace
from regraft.ir.rewrite.pattern import AnyOf, Anything, Apply, Number, Pattern, Variable
from regraft.ir.types import DType

Goals = tuple[Pattern | None, Value | None, "Goals"] | None

_MAX_NUMBER_BYTES = 4096
_EPS = {DType.F16: 2.0**-10, DType.BF16: 2.0**-7, DType.F64: 2.0**-52}


@dataclass(slots=True)
class Match:
    """A complete match.

    Attributes:
        root: The node at which the pattern starts.
        values: Values of the variables.
        nodes: Matched nodes by pattern; the root is among them.
    """

    root: Node
    values: dict[str, Value | None]
    nodes: dict[Apply, Node]

    def __getitem__(self, name: str) -> Value:
        value = self.values[name]
        if value is None:
            raise KeyError(name)
        return value

    def node(self, label: str) -> Node:
        """Returns the node matched by the pattern that was `.named(label)`."""
        for pattern, node in self.nodes.items():
            if pattern.label == label:
                return node
        raise KeyError(label)


def match(pattern: Apply, node: Node, trace: Trace | None = None) -> Match | None:
    """Returns the match of a pattern at a node, or None.

    Args:
        pattern: The root.
        node: A node of the root's operator.
        trace: Filled with the deepest partial match.
    """
    if trace is None and (node.op is not pattern.op or not _may_match(pattern, node)):
        return None  # a trace goes on: it wants to know how far it got
    if pattern.result >= len(node.outputs):
        return None
    matcher = _Matcher(node, trace)
    if trace is not None:
        trace.total = _size(pattern)
    if matcher.solve((pattern, node.outputs[pattern.result], None), 0):
        return Match(node, matcher.values, matcher.nodes)
    return None


def _may_match(pattern: Apply, node: Node) -> bool:
    """Returns False when the producers of the operands rule a match out."""
    swaps = Trait.COMMUTATIVE in pattern.op.traits
    inputs = node.inputs
    for idx, operand in enumerate(pattern.operands):
        if not isinstance(operand, Apply):
            continue
        candidates = inputs[:2] if swaps and idx < 2 else inputs[idx : idx + 1]
        if not any(
            value is not None and value.producer is not None and value.producer.op is operand.op
            for value in candidates
        ):
            return False
    return True


class _Matcher:
    """State of one match attempt: bindings, undone when a branch fails."""

    __slots__ = ("nodes", "root", "trace", "values")

    def __init__(self, root: Node, trace: Trace | None) -> None:
        self.root = root
        self.trace = trace
        self.values: dict[str, Value | None] = {}
        self.nodes: dict[Apply, Node] = {}

    def solve(self, goals: Goals, depth: int) -> bool:
        """Returns whether all goals can be met; bindings are then complete."""
        if goals is None:
            return self._interior_is_private(depth)
        pattern, value, rest = goals
        if pattern is None:
            if value is not None:
                return self._fail(depth, "an operand is present that the pattern has not", value)
            return self.solve(rest, depth + 1)
        match pattern:
            case Variable():
                return self._solve_variable(pattern, value, rest, depth)
            case Anything():
                return self.solve(rest, depth)
            case Number():
                if value is None or not equals_number(value, pattern.value):
                    return self._fail(depth, f"a value is not the constant {pattern.value}", value)
                return self.solve(rest, depth + 1)
            case AnyOf():
                return any(self.solve((option, value, rest), depth) for option in pattern.options)
            case Apply():
                return self._solve_apply(pattern, value, rest, depth)
            case _:
                assert_never(pattern)

    def _solve_variable(
        self, pattern: Variable, value: Value | None, rest: Goals, depth: int
    ) -> bool:
        name = pattern.name
        if value is None and not pattern.optional:
            return self._fail(depth, f"the operand `{name}` is absent")
        if pattern.constant and value is not None and not is_constant(value):
            return self._fail(depth, f"`{name}` is not a constant", value)
        if name in self.values:
            if self.values[name] is not value:
                return self._fail(depth, f"`{name}` stands for two different values", value)
            return self.solve(rest, depth + 1)
        self.values[name] = value
        if self.solve(rest, depth + 1):
            return True
        del self.values[name]
        return False

    def _solve_apply(self, pattern: Apply, value: Value | None, rest: Goals, depth: int) -> bool:
        node = None if value is None else value.producer
        if value is None or node is None or node.op is not pattern.op:
            found = "nothing" if node is None else node.op.name
            return self._fail(depth, f"`{pattern.op.name}` was expected, found {found}", value)
        if value.index != pattern.result:
            return self._fail(depth, f"it is result {value.index}, not {pattern.result}", value)
        for name, wanted in pattern.attrs.items():
            actual = node.attrs[name]
            if not (wanted(actual) if callable(wanted) else wanted == actual):
                return self._fail(depth, f"`{name}` is {actual}", value)
        seen = self.nodes.get(pattern)
        if seen is not None:
            return seen is node and self.solve(rest, depth)
        self.nodes[pattern] = node
        if self._solve_operands(pattern, node, rest, depth + 1):
            return True
        del self.nodes[pattern]
        return False

    def _solve_operands(self, pattern: Apply, node: Node, rest: Goals, depth: int) -> bool:
        wanted: list[Pattern | None] = list(pattern.operands)
        inputs = node.inputs
        if len(wanted) > len(inputs):
            return self._fail(depth, f"it has {len(inputs)} operands", node)
        wanted += [None] * (len(inputs) - len(wanted))
        orders = [list(inputs)]
        if Trait.COMMUTATIVE in pattern.op.traits and len(inputs) > 1:
            orders.append([inputs[1], inputs[0], *inputs[2:]])
        for order in orders:
            goals = rest
            for operand, value in zip(reversed(wanted), reversed(order), strict=True):
                goals = (operand, value, goals)
            if self.solve(goals, depth):
                return True
        return False

    def _interior_is_private(self, depth: int) -> bool:
        matched = set(self.nodes.values())
        for pattern, node in self.nodes.items():
            if node is self.root or pattern.is_shared:
                continue
            for value in node.outputs:
                for user, _ in value.uses:
                    if user not in matched:
                        return self._fail(depth, "a value inside is used elsewhere", value)
        return True

    def _fail(self, depth: int, reason: str, *where: Value | Node | None) -> bool:
        if self.trace is not None:
            self.trace.note(depth, reason, *(item for item in where if item is not None))
        return False


def equals_number(value: Value, number: float) -> bool:
    """Returns whether a value is a constant all of whose elements are `number`, as rounded.

    Two roundings (the exporter's constant folding and the storage type) may separate the stored
    element from the number, hence two units in the last place.
    """
    array = constant_of(value, _MAX_NUMBER_BYTES)
    if array is None or array.size == 0 or array.dtype.kind in "OUSb":
        return False
    eps = 0.0 if array.dtype.kind in "iu" else _EPS.get(value.dtype or DType.F32, 2.0**-23)
    error = np.abs(array.astype(np.float64) - number)
    return bool((error <= 2 * eps * abs(number)).all())


def _size(pattern: Pattern | None) -> int:
    match pattern:
        case None | Variable() | Number():
            return 1
        case Anything():
            return 0
        case AnyOf():
            return max(map(_size, pattern.options))
        case Apply():
            return 1 + sum(map(_size, pattern.operands))
        case _:
            assert_never(pattern)
