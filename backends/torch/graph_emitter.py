"""The body of `forward` under construction: variables, lines, sizes, and what they refer to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from regraft.backends.torch import control, peepholes
from regraft.backends.torch.emitter import Absorbed, EmitContext, EmitTable, Fusions
from regraft.backends.torch.library_source import LibrarySource
from regraft.backends.torch.lines import Lines
from regraft.backends.torch.naming import Variables, identifier, variable_hint
from regraft.backends.torch.part_calls import PartCalls
from regraft.backends.torch.parts import Part
from regraft.backends.torch.sections import Sections
from regraft.backends.torch.sizes import SizeReader
from regraft.backends.torch.tensors import torch_dtype
from regraft.backends.torch.weight_source import WeightSource
from regraft.ir.constants import constant_of, literal, weight
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops.reshaping import transpose
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import Role

_ALIAS = re.compile(r"self(\.\w+|\[\w+\])*")
_NUMBER_KINDS = "fiub"
_CONSTANTS = (weight, literal)


class GraphEmitter:
    """Writes the statements of `forward`, node by node in graph order.

    Args:
        table: Emitters by operator.
        weights: The tensors of the generated module.
        library: Functions copied into the generated file.
        arguments: Names of the arguments of `forward`, in the order of the graph's inputs.
        calls: The parts that are classes of their own.
        is_part: Whether this is such a part, which may take sizes as arguments.
    """

    def __init__(
        self,
        table: EmitTable,
        weights: WeightSource,
        library: LibrarySource,
        arguments: Sequence[str],
        calls: PartCalls | None = None,
        *,
        is_part: bool = False,
    ) -> None:
        self.table = table
        self.weights = weights
        self.library = library
        self.lines = Lines()
        self.variables = Variables(arguments)
        self.sizes = SizeReader(self.variables, may_ask=is_part)
        self._is_part = is_part
        self.arguments = arguments
        self.calls = PartCalls(()) if calls is None else calls
        self.names: dict[Value, str] = {}
        self.fusions: Fusions = table.fusions or peepholes
        self.absorbed: dict[Node, Absorbed] = {}
        self._deaths: dict[Node, list[Value]] = {}
        self._temps: list[str] = []
        self._on_device: str | None = None
        self._sections = Sections(self.lines, self.variables, weights)

    # -- what emitters ask for --------------------------------------------------------------

    def expression(self, value: Value) -> str:
        """Returns what holds a value: a variable, or an attribute of `self`."""
        found = self.names.get(value)
        if found is not None:
            return found
        producer = value.producer
        if producer is not None and producer.op is weight:
            name = self._stored_name(producer)
            shared = constant_of(value) if self._is_part and not self.weights.holds(name) else None
            if shared is not None:
                return self.constant(shared, identifier(variable_hint(value)))
            return self._sections.shortened(self.weights.stored(name))
        if producer is not None and producer.op is literal:
            hint = identifier(variable_hint(value)) if value.name else "constant"
            return self.constant(producer.attrs["value"], hint)
        raise AssertionError(f"{value!r} is used before it is emitted")

    def transposed(self, value: Value) -> str:
        """Returns the expression of the transpose of a stored matrix."""
        held = self.names.get(value)
        if held is not None:
            return f"{held}.t()"  # a part that reads a matrix of another one gets it as an argument
        producer = value.producer
        if producer is not None and producer.op is transpose and producer.inputs[0] is not None:
            return self.expression(producer.inputs[0])
        if producer is None or producer.op is not weight:
            return f"{self.expression(value)}.t()"
        return self._sections.shortened(self.weights.transposed(self._stored_name(producer)))

    def number(self, value: Value) -> str | None:
        """Returns a one-element constant as a Python number, or None.

        A parameter or buffer is none: training and `load_state_dict` change it.
        """
        producer = value.producer
        if producer is not None and producer.op is weight and _role(producer) is not Role.CONST:
            return None
        array = constant_of(value, 16)
        if array is None or array.size != 1 or array.dtype.kind not in _NUMBER_KINDS:
            return None
        item = array.reshape(-1)[0].item()
        if isinstance(item, float) and not np.isfinite(item):
            return f'float("{item}")'
        short = str(array.reshape(-1)[0])  # the fewest digits that give the element back
        is_short = isinstance(item, float) and abs(float(short)) <= abs(item)
        return short if is_short or array.dtype == np.float64 else repr(item)

    def size(self, dim: DimLike, *, is_operand: bool = False) -> str:
        """Returns a Python integer expression of a size."""
        return self.sizes.size(dim, is_operand=is_operand)

    def temp(self, expression: str, hint: str) -> str:
        """Adds the line `hint = expression`; the variable lives until the node is emitted."""
        name = self.variables.take(identifier(hint))
        self._temps.append(name)
        self.lines.add(f"{name} = {expression}", name)
        return name

    def unpacked(self, expression: str, hints: Sequence[str]) -> list[str]:
        """Adds the line `a, b = expression`; the variables live until the node is emitted.

        A value that one of them is bound to (`bind`) lives on.
        """
        names = [self.variables.take(identifier(hint)) for hint in hints]
        self._temps += names
        self.lines.add(f"{', '.join(names)} = {expression}", *names)
        return names

    def helper(self, function: Callable[..., Any]) -> str:
        """Returns the name of a function that is copied into the generated file."""
        return self.library.add(function)

    def dtype(self, dtype: DType) -> str:
        """Returns `torch.float32` for an element type."""
        return str(torch_dtype(dtype))

    def constant(self, array: np.ndarray[Any, Any], hint: str) -> str:
        """Returns the expression of a constant tensor on the module's device."""
        return self.weights.constant(array, hint)

    def device(self) -> str:
        """Returns the expression of the device on which the module runs."""
        if self._on_device is not None:
            return f"{self._on_device}.device"
        return f"{self.constant(np.zeros((), np.float32), 'anchor')}.device"

    # -- the walk ---------------------------------------------------------------------------

    def emit_main(self, graph: Graph, held: Mapping[Value, str]) -> list[str]:
        """Emits the main graph; returns the expressions of its outputs.

        Cost: O(nodes).

        Args:
            graph: The graph.
            held: Inputs that are buffers of the module, with their expressions.
        """
        self.names.update(held)
        self._begin([value for value in graph.inputs if value not in held])
        self.emit_nodes(list(graph), graph.outputs)
        return [self.expression(value) for value in graph.outputs]

    def emit_part(self, part: Part, results: Sequence[tuple[int, int]]) -> list[str]:
        """Emits one part of a group as a function of its arguments; returns its results."""
        self._begin(part.arguments)
        values = [part.result(place) for place in results]
        self.emit_nodes(part.nodes, values)
        return [self.expression(value) for value in values]

    def _begin(self, values: Sequence[Value]) -> None:
        start = self.lines.anchor()
        for value, name in zip(values, self.arguments, strict=True):
            self.names[value] = name
            self.sizes.note(value, name, start)
            if self._on_device is None and isinstance(value.type, TensorType):
                self._on_device = name

    def emit_nodes(self, nodes: Sequence[Node], outputs: Sequence[Value]) -> None:
        """Emits nodes in order, whose operands have names; `outputs` live on after them."""
        outside = [node for node in nodes if node not in self.calls.readers]
        self.absorbed.update(self.fusions.find(outside))
        readers = {node: taken.by for node, taken in self.absorbed.items()} | self.calls.readers
        self._deaths.update(_deaths(nodes, outputs, readers))
        for node in nodes:
            if self.calls.emit(self, node):
                self._release(node)
            elif node.op not in _CONSTANTS and node not in readers:
                self._emit_node(node)
                self._release(node)

    def _emit_node(self, node: Node) -> None:
        statement = control.STATEMENTS.get(node.op)
        if statement is not None:
            statement(self, node)
            return
        if not any(map(self.is_wanted, node.outputs)):
            return
        e = EmitContext(node, self)
        emitter = self.table.find(node.op)
        if emitter is None:
            raise AssertionError(f"`{node.op.name}` has no emitter")
        emitted = self.fusions.emit(e, self) or emitter(e)
        if isinstance(emitted, str):
            if len(node.outputs) == 1:
                self.bind(node.output, emitted)
            else:
                self._bind_all(node, emitted)
        else:
            for value, expression in zip(node.outputs, emitted, strict=True):
                if self.is_wanted(value):
                    self.bind(value, expression)

    def is_wanted(self, value: Value) -> bool:
        """Returns whether something reads a value, or a size that only it shows."""
        return bool(value.num_uses) or self.sizes.is_new(value)

    def bind(self, value: Value, expression: str) -> None:
        """Gives a value its variable: a new one, unless the expression is a variable already."""
        if self.variables.is_variable(expression):
            self.variables.hold(expression)
            self.names[value] = expression
        elif _ALIAS.fullmatch(expression):
            self.names[value] = expression
        else:
            self.names[value] = self.assign(self._hint(value), expression, self._dying_names(value))
        self.sizes.note(value, self.names[value], self.lines.anchor())

    def _hint(self, value: Value) -> str:
        """Returns what a value is called: by the part of the model whose weight made it.

        `query = F.linear(x, layer.query.weight, …)`; others by their own name.
        """
        for operand in () if value.producer is None else value.producer.inputs:
            made = None if operand is None else operand.producer
            while made is not None and made in self.absorbed:
                operand = made.inputs[-1]  # the matrix of a product, what a transpose moves
                made = None if operand is None else operand.producer
            if made is not None and made.op is weight:
                owner = self.weights.owner(self._stored_name(made))
                if owner is not None:
                    return owner
        return variable_hint(value)

    def assign(self, hint: str, expression: str, dying: Sequence[str] = ()) -> str:
        """Adds `hint = expression`; a variable that dies here is written over when it fits."""
        if hint in dying and self.variables.num_holders(hint) == dying.count(hint):
            self.variables.hold(hint)
            name = hint
        else:
            name = self.variables.take(hint)
        self.lines.add(f"{name} = {expression}", name)
        return name

    def _dying_names(self, value: Value) -> list[str]:
        """Variables that the producer of a value reads last."""
        producer = value.producer
        if producer is None or len(producer.outputs) > 1:
            return []
        return self.dying_at(producer)

    def dying_at(self, node: Node) -> list[str]:
        """Returns the variables that a node reads last."""
        dying = self._deaths.get(node, ())
        return [self.names[each] for each in dying if each in self.names]

    def _bind_all(self, node: Node, expression: str) -> None:
        names = []
        for value in node.outputs:
            if self.is_wanted(value):
                self.names[value] = self.variables.take(variable_hint(value))
            names.append(self.names.get(value, "_"))
        line = self.lines.add(f"{', '.join(names)} = {expression}", *names)
        for value in node.outputs:
            if value in self.names:
                self.sizes.note(value, self.names[value], line)

    # -- bodies -----------------------------------------------------------------------------

    @contextmanager
    def block(self) -> Iterator[None]:
        """Statements within are those of a body; what it learns of sizes is forgotten after it."""
        known = self.sizes.mark()
        with self.lines.indented():
            yield
        self.sizes.forget_since(known)

    def emit_body(
        self, body: Graph, formals: Sequence[str], captures: Sequence[Value]
    ) -> list[str]:
        """Emits a body graph within the current block; returns the expressions of its outputs.

        Args:
            body: The graph.
            formals: What holds its own inputs.
            captures: Outer values of its last inputs.
        """
        num_formals = len(body.inputs) - len(captures)
        start = self.lines.anchor()
        for value, name in zip(body.inputs, formals, strict=False):
            self.names[value] = name
            self.sizes.note(value, name, start)
        for value, outer in zip(body.inputs[num_formals:], captures, strict=True):
            self.names[value] = self.expression(outer)
        self.emit_nodes(list(body), body.outputs)
        return [self.expression(value) for value in body.outputs]

    # -- life of variables ------------------------------------------------------------------

    def _release(self, node: Node) -> None:
        """Frees the variables that this node read last."""
        for value in self._deaths.get(node, ()):
            self._free(value)
        for value in node.outputs:
            if not value.num_uses:
                self._free(value)
        for name in self._temps:
            if self.variables.is_variable(name):
                self.variables.release(name)
        self._temps.clear()
        self._sections.end_node()

    def _free(self, value: Value) -> None:
        name = self.names.get(value)
        if name is None or not self.variables.is_variable(name) or name in self.arguments:
            return
        if self.variables.release(name) and isinstance(value.type, TensorType):
            self.lines.note_dead(name)

    @staticmethod
    def _stored_name(node: Node) -> str:
        if node.graph is None:
            raise AssertionError("a weight node outside a graph")
        return node.graph.scope.weights.resolve(node.attrs["name"])


def _role(node: Node) -> Role:
    if node.graph is None:
        raise AssertionError("a weight node outside a graph")
    return node.graph.scope.weights.role(node.attrs["name"])


def _deaths(
    nodes: Sequence[Node], outputs: Sequence[Value], readers: Mapping[Node, Node]
) -> dict[Node, list[Value]]:
    """Returns the values that each node reads last; outputs and arguments never die.

    Args:
        nodes: The nodes in order.
        outputs: What lives on.
        readers: Nodes that other nodes are emitted with.
    """
    last: dict[Value, Node] = {}
    for node in nodes:
        reader = readers.get(node, node)
        for value in node.inputs:
            if value is not None and value.producer is not None:
                before = last.get(value)
                if before is None or before.is_before(reader):
                    last[value] = reader
    for value in outputs:
        last.pop(value, None)
    deaths: dict[Node, list[Value]] = {}
    for value, node in last.items():
        deaths.setdefault(node, []).append(value)
    return deaths
