"""Values, nodes and graphs: a mutable SSA graph whose use lists are always right.

A graph is a doubly linked list of nodes in topological order. Insertion and erasure during
iteration are defined: a node inserted after the current one is visited, an erased one is not.
`Node.is_before` is O(1). Values and nodes compare by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from regraft.ir.axes import infer_from_rule
from regraft.ir.dims import Dim, DimLike, Symbol
from regraft.ir.errors import TypeInferenceError
from regraft.ir.opspec import REQUIRED, OpSpec, Trait
from regraft.ir.types import UNKNOWN, DType, TensorType, Type
from regraft.ir.weights import WeightStore

T = TypeVar("T")

_ORDER_STEP = 1 << 20
_MAX_LOC = 32

Loc = tuple[str, ...]
Content = DimLike | tuple[DimLike, ...]


@dataclass(frozen=True, eq=False)
class Key(Generic[T]):
    """A typed metadata key; `copies` says whether a replacement inherits the entry."""

    name: str
    copies: bool = True


@dataclass(frozen=True, slots=True)
class Assumption:
    """A fact that could not be decided and was taken; tested at run time, printed in reports.

    Args:
        left: One size.
        right: The size it is assumed to equal.
        reason: Which node needed it.
    """

    left: DimLike
    right: DimLike
    reason: str


class Scope:
    """What the graphs of one module share: weights, symbols, and the counter for fresh symbols."""

    __slots__ = ("_next_symbol", "assumptions", "main", "symbols", "weights")

    def __init__(self) -> None:
        self.main: Graph | None = None  # the graph that is no body: the first one of the scope
        self.weights = WeightStore()
        self.symbols: dict[str, Symbol] = {}
        self.assumptions: dict[tuple[DimLike, DimLike], Assumption] = {}
        self._next_symbol = 0

    def assume_equal(self, left: DimLike, right: DimLike, reason: str) -> None:
        """Records an equality of sizes that could not be decided; idempotent."""
        self.assumptions.setdefault((left, right), Assumption(left, right, reason))

    def symbol(self, name: str, **facts: Any) -> Symbol:
        """Returns the symbol of that name, made with `facts` when it does not exist yet."""
        found = self.symbols.get(name)
        if found is None:
            found = self.symbols[name] = Symbol(name, **facts)
        return found

    def fresh(self, lo: int = 0, hi: int | None = None) -> Dim:
        """Returns a new defined symbol (a size that a node's result decides)."""
        while f"u{self._next_symbol}" in self.symbols:
            self._next_symbol += 1
        return Dim.of(self.symbol(f"u{self._next_symbol}", lo=lo, hi=hi, defined=True))


class Value:
    """A result of a node or an input of a graph.

    Attributes:
        name: Its name, or None for an anonymous value; printing and emission make names unique.
        type: What is known of it.
        content: Symbolic content of a small integer tensor (scalar or tuple), or None.
        producer: The node that defines it, or None for a graph input.
        index: Position among the producer's results or the graph's inputs.
        graph: The graph it is an input of, or None when a node produces it.
    """

    __slots__ = ("_uses", "content", "graph", "index", "name", "producer", "type")

    def __init__(
        self,
        name: str | None,
        type_: Type,
        producer: Node | None = None,
        index: int = 0,
        graph: Graph | None = None,
    ) -> None:
        self.name = name
        self.type = type_
        self.content: Content | None = None
        self.producer = producer
        self.index = index
        self.graph = graph
        self._uses: dict[tuple[Node | Graph, int], None] = {}

    @property
    def uses(self) -> Iterable[tuple[Node | Graph, int]]:
        """(user, position) pairs in order of creation; a Graph user means a graph output."""
        return self._uses.keys()

    @property
    def num_uses(self) -> int:
        """Number of uses, graph outputs included."""
        return len(self._uses)

    @property
    def users(self) -> list[Node]:
        """Distinct nodes that use the value, in order of first use."""
        return list(dict.fromkeys(user for user, _ in self._uses if isinstance(user, Node)))

    @property
    def is_output(self) -> bool:
        """Whether it is an output of its graph."""
        return any(isinstance(user, Graph) for user, _ in self._uses)

    @property
    def owner(self) -> Graph | None:
        """The graph in which the value is defined (None for a value of an erased node)."""
        return self.producer.graph if self.producer is not None else self.graph

    @property
    def shape(self) -> tuple[DimLike, ...] | None:
        """Shape of a tensor, or None when it is unknown or the value is no tensor."""
        type_ = self.type
        return type_.shape if isinstance(type_, TensorType) else None

    @property
    def rank(self) -> int | None:
        """Number of axes, or None."""
        shape = self.shape
        return None if shape is None else len(shape)

    @property
    def dtype(self) -> DType | None:
        """Element type of a tensor, or None."""
        type_ = self.type
        return type_.dtype if isinstance(type_, TensorType) else None

    def replace_all_uses_with(self, new: Value) -> None:
        """Makes every user of this value use `new` instead, graph outputs included."""
        for user, idx in list(self._uses):
            user.set_operand(idx, new)

    def __repr__(self) -> str:
        return f"%{self.name if self.name is not None else '?'} : {self.type}"


class Node:
    """One application of an operator.

    Attributes:
        op: The operator's spec.
        attrs: Static parameters, defaults filled in.
        outputs: Results; never empty.
        bodies: Body graphs of control flow.
        loc: Where it comes from (module path, ONNX node, source line) and the rules that made it.
        graph: The graph that holds it, or None after erasure.
    """

    __slots__ = (
        "_inputs", "_meta", "attrs", "bodies", "graph", "loc", "next", "op", "order", "outputs",
        "prev",
    )  # fmt: skip

    def __init__(
        self,
        op: OpSpec,
        inputs: Sequence[Value | None],
        attrs: dict[str, Any],
        num_outputs: int,
        bodies: tuple[Graph, ...] = (),
        loc: Loc = (),
    ) -> None:
        self.op = op
        self._inputs = list(inputs)
        self.attrs = attrs
        self.bodies = bodies
        self.loc = loc
        self.graph: Graph | None = None
        self.prev: Node | None = None
        self.next: Node | None = None
        self.order = 0
        self._meta: dict[Key[Any], Any] | None = None
        if num_outputs == 1:  # nearly always: a generator costs as much as the rest
            self.outputs: tuple[Value, ...] = (Value(None, UNKNOWN, self, 0),)
        else:
            self.outputs = tuple(Value(None, UNKNOWN, self, i) for i in range(num_outputs))
        for idx, value in enumerate(self._inputs):
            if value is not None:
                value._uses[self, idx] = None

    # -- operands ---------------------------------------------------------------------------

    @property
    def inputs(self) -> Sequence[Value | None]:
        """Operands by slot; an absent optional operand is None. Change with `set_operand`."""
        return self._inputs

    @property
    def output(self) -> Value:
        """The first result."""
        return self.outputs[0]

    def operand(self, name: str) -> Value | None:
        """Returns the operand in the slot `name`, or None when absent."""
        idx = self.op.operand_idx[name]
        return self._inputs[idx] if idx < len(self._inputs) else None

    def variadic(self) -> list[Value]:
        """Returns the operands of the variadic slot."""
        return [v for v in self._inputs[len(self.op.operands) - 1 :] if v is not None]

    def static(self, name: str) -> Any:
        """Returns the static value of an *either* parameter, or None when only run time knows it.

        The attribute when set, else the symbolic content of the operand (a Dim, an int, or a tuple
        of them).
        """
        value = self.attrs.get(name)
        if value is not None:
            return value
        operand = self.operand(name)
        return None if operand is None else operand.content

    def set_operand(self, idx: int, value: Value | None) -> None:
        """Replaces one operand and keeps both use lists right."""
        old = self._inputs[idx]
        if old is value:
            return
        if old is not None:
            del old._uses[self, idx]
        self._inputs[idx] = value
        if value is not None:
            value._uses[self, idx] = None

    def set_operands(self, values: Sequence[Value | None]) -> None:
        """Replaces all operands, also by another number of them."""
        for idx, old in enumerate(self._inputs):
            if old is not None:
                del old._uses[self, idx]
        self._inputs = list(values)
        for idx, value in enumerate(self._inputs):
            if value is not None:
                value._uses[self, idx] = None

    # -- facts ------------------------------------------------------------------------------

    def is_before(self, other: Node) -> bool:
        """Returns whether this node stands before `other` in the same graph; O(1)."""
        return self.order < other.order

    def get_meta(self, key: Key[T]) -> T | None:
        """Returns the metadata entry under `key`, or None."""
        return None if self._meta is None else self._meta.get(key)

    def set_meta(self, key: Key[T], value: T) -> None:
        """Sets the metadata entry under `key`."""
        if self._meta is None:
            self._meta = {}
        self._meta[key] = value

    @property
    def meta(self) -> Mapping[Key[Any], Any]:
        """All metadata entries."""
        return self._meta or {}

    def infer(self) -> None:
        """Computes result types and contents from operands and attributes; cost O(operands).

        Within a body, operands that the operator forbids give results of unknown type: the branch
        need not run for the sizes that contradict it (`if size == 1: squeeze`).

        Raises:
            TypeInferenceError: When the operator forbids these operands, in the main graph.
        """
        infer = self.op.infer
        types: Type | Sequence[Type]
        try:
            types = infer_from_rule(self) if infer is None else infer(self)
        except TypeInferenceError:
            if self.in_main_graph:
                raise
            types = [UNKNOWN] * len(self.outputs)
        outputs = self.outputs
        if isinstance(types, TensorType):
            outputs[0].type = types
        elif isinstance(types, Sequence):
            for value, type_ in zip(outputs, types, strict=False):
                value.type = type_
        else:
            outputs[0].type = types
        if self.op.content is not None:
            content = self.op.content(self)
            if isinstance(content, list):  # one per result
                for value, each in zip(outputs, content, strict=True):
                    value.content = each
            else:
                outputs[0].content = content

    def fresh_dim(self, result: int, axis: int, lo: int = 0, hi: int | None = None) -> DimLike:
        """Returns the defined symbol of an axis whose size only run time knows.

        The symbol already recorded there is reused, so that inference is repeatable.
        """
        type_ = self.outputs[result].type
        if isinstance(type_, TensorType) and type_.shape is not None and axis < len(type_.shape):
            dim = type_.shape[axis]
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.defined:
                return dim
        if self.graph is None:
            raise AssertionError(f"`{self.op.name}` is inferred outside a graph")
        return self.graph.scope.fresh(lo, hi)

    def assume_equal(self, left: DimLike, right: DimLike, reason: str) -> None:
        """Records an equality of sizes that the node needs and that could not be decided.

        Not within bodies: a branch need not run for the sizes that contradict it, and where it
        runs, its own operators check.
        """
        if self.graph is not None and self.in_main_graph:
            self.graph.scope.assume_equal(left, right, reason)

    @property
    def in_main_graph(self) -> bool:
        """Whether the node runs whenever the module does: it is in no body."""
        return self.graph is None or self.graph.scope.main is self.graph

    def error(self, message: str, *, hint: str | None = None) -> TypeInferenceError:
        """Returns an inference error that names this node; the caller raises it."""
        where = f" ({', '.join(self.loc[:2])})" if self.loc else ""
        types = ", ".join("none" if v is None else str(v.type) for v in self._inputs)
        return TypeInferenceError(
            f"{self.op.name}: {message}; operands: {types}{where}",
            hint=hint or f"{self.op.source} does not allow it: correct what is named",
        )

    def __repr__(self) -> str:
        return f"<node {self.op.name} {', '.join(map(repr, self.outputs))}>"


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
