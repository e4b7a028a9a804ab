"""Values and nodes, of which graphs consist; both compare by identity, use lists are right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from regraft.ir.axis_binding import infer_from_rule
from regraft.ir.dims import Dim, DimLike
from regraft.ir.errors import TypeInferenceError
from regraft.ir.opspec import OpSpec
from regraft.ir.types import UNKNOWN, DType, TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.graph import Graph

T = TypeVar("T")

Loc = tuple[str, ...]
Content = DimLike | tuple[DimLike, ...]


@dataclass(frozen=True, eq=False)
class Key(Generic[T]):
    """A typed metadata key; `copies` says whether a replacement inherits the entry."""

    name: str
    copies: bool = True


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
        return any(not isinstance(user, Node) for user, _ in self._uses)

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
