"""Graphs: mutable, in SSA form, whose use lists are always right.

A graph is a doubly linked list of nodes in topological order. Insertion and erasure during
iteration are defined: a node inserted after the current one is visited, an erased one is not.
`Node.is_before` is O(1). Values and nodes compare by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from regraft.ir.errors import TypeInferenceError
from regraft.ir.node import Content, Key, Loc, Node, Value
from regraft.ir.opspec import REQUIRED, OpSpec, Trait
from regraft.ir.scope import Assumption, Scope
from regraft.ir.types import Type

_ORDER_STEP = 1 << 20
_MAX_LOC = 32


class Graph:
    """Inputs, a linked list of nodes in topological order, and named outputs.

    Attributes:
        scope: Weights and symbols shared with the module's other graphs.
        inputs: Graph inputs (for a body: carried values, slices, then captures).
        output_names: Names of the outputs; they never change, whatever value an output becomes.
        parent: The node whose body this is, or None.
    """

    __slots__ = ("_outputs", "first", "inputs", "last", "num_nodes", "output_names", "parent",
                 "scope")  # fmt: skip

    def __init__(self, scope: Scope | None = None) -> None:
        self.scope = scope if scope is not None else Scope()
        if self.scope.main is None:
            self.scope.main = self
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self.output_names: list[str] = []
        self.first: Node | None = None
        self.last: Node | None = None
        self.num_nodes = 0
        self.parent: Node | None = None

    # -- interface --------------------------------------------------------------------------

    def add_input(self, name: str | None, type_: Type) -> Value:
        """Appends a graph input."""
        value = Value(name, type_, None, len(self.inputs), self)
        self.inputs.append(value)
        return value

    def remove_input(self, index: int) -> None:
        """Removes an unused graph input (of a body whose capture is gone)."""
        value = self.inputs[index]
        if value._uses:
            raise AssertionError(f"input {value!r} is still used")
        del self.inputs[index]
        for i, rest in enumerate(self.inputs):
            rest.index = i

    def add_output(self, name: str, value: Value) -> None:
        """Appends an output."""
        value._uses[self, len(self._outputs)] = None
        self._outputs.append(value)
        self.output_names.append(name)

    def remove_output(self, index: int) -> None:
        """Removes an output."""
        outputs = list(zip(self.output_names, self._outputs, strict=True))
        del outputs[index]
        self.set_outputs(outputs)

    def set_outputs(self, outputs: Iterable[tuple[str, Value]]) -> None:
        """Replaces all outputs."""
        for idx, value in enumerate(self._outputs):
            del value._uses[self, idx]
        self._outputs, self.output_names = [], []
        for name, value in outputs:
            self.add_output(name, value)

    @property
    def outputs(self) -> Sequence[Value]:
        """Output values; change with `set_operand` or `set_outputs`."""
        return self._outputs

    def set_operand(self, idx: int, value: Value | None) -> None:
        """Replaces one output value; the output's name stays."""
        if value is None:
            raise AssertionError("a graph output cannot be absent")
        del self._outputs[idx]._uses[self, idx]
        self._outputs[idx] = value
        value._uses[self, idx] = None

    # -- nodes ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Node]:
        node = self.first
        while node is not None:
            yield node
            node = node.next
            while node is not None and node.graph is not self:
                node = node.next

    def __reversed__(self) -> Iterator[Node]:
        node = self.last
        while node is not None:
            yield node
            node = node.prev
            while node is not None and node.graph is not self:
                node = node.prev

    def __len__(self) -> int:
        return self.num_nodes

    def walk(self) -> Iterator[Node]:
        """Iterates over the nodes of this graph and of all bodies, each node before its bodies."""
        for node in self:
            yield node
            for body in node.bodies:
                yield from body.walk()

    def create(
        self,
        op: OpSpec,
        inputs: Sequence[Value | None] = (),
        attrs: Mapping[str, Any] | None = None,
        *,
        num_outputs: int | None = None,
        bodies: tuple[Graph, ...] = (),
        before: Node | None = None,
        loc: Loc = (),
        infer: bool = True,
    ) -> Node:
        """Creates a node before `before` (at the end by default) and infers its types.

        Args:
            op: The operator.
            inputs: Operands by slot; missing trailing ones are absent.
            attrs: Static parameters; defaults are filled in.
            num_outputs: Number of results; default: all that `op` names and that are not variadic
                or optional.
            bodies: Body graphs.
            before: The node to insert before; None appends.
            loc: Origins.
            infer: Whether to compute result types now.

        Raises:
            TypeInferenceError: When a required attribute is missing or the operands are forbidden.
        """
        slots = len(op.operands)
        if len(inputs) < slots:
            missing = slots - len(inputs)
            inputs = [*inputs, *([None] * (missing - 1 if op.is_variadic else missing))]
        full = dict(op.defaults)
        if attrs:
            full.update(attrs)
        if len(full) != len(op.all_attrs):
            _explain_attrs(op, full)
        if num_outputs is None:
            num_outputs = op.num_results
        node = Node(op, inputs, full, num_outputs, bodies, loc)
        for body in bodies:
            body.parent = node
        self._link(node, before)
        if infer:
            try:
                node.infer()
            except TypeInferenceError:
                self.erase(node)
                raise
        return node

    def _link(self, node: Node, before: Node | None) -> None:
        node.graph = self
        self.num_nodes += 1
        prev = self.last if before is None else before.prev
        node.prev, node.next = prev, before
        if prev is None:
            self.first = node
        else:
            prev.next = node
        if before is None:
            self.last = node
            node.order = _ORDER_STEP if prev is None else prev.order + _ORDER_STEP
            return
        before.prev = node
        low = before.order - 2 * _ORDER_STEP if prev is None else prev.order
        node.order = (low + before.order) // 2
        if node.order in (low, before.order):
            for i, each in enumerate(self):
                each.order = (i + 1) * _ORDER_STEP

    def erase(self, node: Node) -> None:
        """Removes a node whose results have no uses.

        The erased node keeps its links, so that an iteration standing on it can go on.
        """
        for value in node.outputs:
            if value._uses:
                user = next(iter(value._uses))[0]
                raise AssertionError(f"cannot erase {node!r}: {value!r} is used by {user!r}")
        node.set_operands(())
        self._unlink(node)

    def _unlink(self, node: Node) -> None:
        if node.prev is None:
            self.first = node.next
        else:
            node.prev.next = node.next
        if node.next is None:
            self.last = node.prev
        else:
            node.next.prev = node.prev
        node.graph = None
        self.num_nodes -= 1

    def move_before(self, node: Node, before: Node | None) -> None:
        """Moves a node of this graph; the caller keeps the order topological."""
        self._unlink(node)
        self._link(node, before)

    def replace(self, node: Node, values: Sequence[Value], rule: str | None = None) -> None:
        """Replaces the results of `node` by `values` of equal meaning and erases it.

        New values without a name take the old one's; origins are merged and `rule` is recorded in
        the producers of the new values.
        """
        loc = node.loc if rule is None else (*node.loc, f"rule:{rule}")
        for old, new in zip(node.outputs, values, strict=True):
            if old._uses:
                old.replace_all_uses_with(new)
            if new.name is None:
                new.name = old.name
            producer = new.producer
            if producer is not None and loc and producer.op.traits & Trait.CONSTANT == Trait.NONE:
                producer.loc = merge_loc(producer.loc, loc)
        self.erase(node)

    def reorder(self, nodes: Iterable[Node]) -> None:
        """Relinks exactly the graph's nodes in the given order."""
        order = list(nodes)
        if len(order) != self.num_nodes:
            raise AssertionError("reorder takes exactly the nodes of the graph")
        self.first = self.last = None
        self.num_nodes = 0
        for node in order:
            self._link(node, None)

    def __repr__(self) -> str:
        return f"<graph of {self.num_nodes} nodes>"


def merge_loc(a: Loc, b: Loc) -> Loc:
    """Returns the union of two origin sets in order, at most 32 entries."""
    if not a or a == b:
        return a or b
    merged = tuple(dict.fromkeys((*a, *b)))
    return merged[:_MAX_LOC]


def _explain_attrs(op: OpSpec, attrs: Mapping[str, Any]) -> None:
    missing = [n for n, a in op.all_attrs.items() if a.default is REQUIRED and n not in attrs]
    if missing:
        raise TypeInferenceError(f"{op.name}: attribute `{missing[0]}` is missing")
    unknown = [name for name in attrs if name not in op.all_attrs]
    if unknown:
        raise TypeInferenceError(
            f"{op.name}: unknown attribute `{unknown[0]}`",
            hint=f"it has {', '.join(op.all_attrs) or 'no attributes'}",
        )


__all__ = ["Assumption", "Content", "Graph", "Key", "Loc", "Node", "Scope", "Value", "merge_loc"]
