"""One ONNX graph under construction: names, nodes, initializers, bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from regraft.backends.onnx.attributes import make_attribute
from regraft.backends.onnx.emitter import EmitContext, EmitTable
from regraft.backends.onnx.sizes import SizeBuilder
from regraft.backends.onnx.storage import Deduplicator, Embedded, Storage
from regraft.backends.onnx.tensors import array_to_tensor, type_to_proto
from regraft.ir.constants import literal, opaque, weight
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.types import TensorType, Type
from regraft.ir.weights import Weight

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class GraphEmitter:
    """One ONNX graph under construction."""

    table: EmitTable
    opset: int
    profile: str
    parent: GraphEmitter | None = None
    names: dict[Value, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    shared: dict[Any, str] = field(default_factory=dict)
    storage: Storage = field(default_factory=Embedded)
    stored: dict[str, str] = field(default_factory=dict)
    duplicates: Deduplicator = field(default_factory=Deduplicator)
    graph: Graph | None = None
    places: Mapping[str, Graph] = field(default_factory=dict)
    transposed: Mapping[str, Node] = field(default_factory=dict)
    sizes: SizeBuilder = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = SizeBuilder(self, None if self.parent is None else self.parent.sizes)

    def fresh(self, hint: str) -> str:
        """Returns an unused name that starts with `hint`."""
        name = hint
        while name in self.taken:
            number = self.numbers[hint] = self.numbers.get(hint, 0) + 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str,
        attrs: Mapping[str, Any],
        node: Node | None = None,
    ) -> str:
        """Appends an ONNX node; see `EmitContext.emit`."""
        proto = onnx.NodeProto(op_type=op_type, input=inputs, output=outputs)
        proto.name = self.fresh(f"node_{outputs[0]}" if outputs else op_type)
        if domain:
            proto.domain = domain
            self.domains.add(domain)
        for key, value in attrs.items():
            if value is not None:
                proto.attribute.append(make_attribute(key, value))
        self.nodes.append(proto)
        return outputs[0]

    def constant(self, array: Array) -> str:
        """Returns the name of an initializer with this content, shared between equal ones."""
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if array.dtype == object:
            key = (array.dtype.str, "", array.shape, tuple(array.reshape(-1)))  # type: ignore[assignment]
        found = self.shared.get(key)
        if found is None:
            found = self.shared[key] = self.fresh("const")
            self.initializers.append(array_to_tensor(array, found))
        return found

    @property
    def root(self) -> GraphEmitter:
        """The emitter of the main graph."""
        return self if self.parent is None else self.parent.root

    def weight(self, stored_name: str, weight: Weight, hint: str) -> str:
        """Returns the name of the initializer of a weight, one for equal contents.

        Initializers stand in the main graph, whose names bodies see, unless they are placed.
        """
        root = self.root
        place = root.places.get(stored_name)
        home = root if place is None else self._emitter_of(place)
        found = home.stored.get(stored_name)
        if found is None:
            found = home.duplicates.find(weight, hint)
            if found is None:
                found = hint
                storage = root.storage if home is root else Embedded()
                home.initializers.append(storage.tensor(weight, hint))
            home.stored[stored_name] = found
        return found

    def _transposed(self, stored_name: str, node: Node) -> str:
        """Returns the name of the transpose of a matrix that the model holds as it is."""
        found = self.stored.get(stored_name)
        if found is None:
            other = self.transposed[stored_name]
            if other.graph is None:
                raise AssertionError("a weight node outside a graph")
            name = other.attrs["name"]
            held = other.graph.scope.weights[name]
            hint = self.stored.get(name) or self.fresh(other.output.name or name)
            matrix = self.weight(name, held, hint)
            found = self.stored[stored_name] = self.names[node.output]
            self.emit("Transpose", [matrix], [found], "", {"perm": (1, 0)}, node)
        return found

    def _emitter_of(self, graph: Graph) -> GraphEmitter:
        emitter: GraphEmitter | None = self
        while emitter is not None and emitter.graph is not graph:
            emitter = emitter.parent
        if emitter is None:
            raise AssertionError("a weight is placed in a graph that does not hold its user")
        return emitter

    def body(self, graph: Graph, captures: Sequence[Value], hint: str) -> onnx.GraphProto:
        """Emits a body graph; its last inputs refer to the outer names of `captures`."""
        inner = GraphEmitter(
            self.table,
            self.opset,
            self.profile,
            parent=self,
            taken=self.taken,
            numbers=self.numbers,
            graph=graph,
        )
        num_formals = len(graph.inputs) - len(captures)
        for value, outer in zip(graph.inputs[num_formals:], captures, strict=True):
            inner.names[value] = self.names[outer]
        proto = onnx.GraphProto(name=f"body_{hint}")
        inner.emit_graph(graph, proto, num_formals)
        self.domains |= inner.domains
        return proto

    def emit_graph(
        self,
        graph: Graph,
        proto: onnx.GraphProto,
        num_inputs: int,
        dim_names: Mapping[str, str] | None = None,
    ) -> None:
        """Emits a whole graph into `proto`.

        Args:
            graph: The graph.
            proto: The empty GraphProto of its name; filled in place, since a copy costs as much.
            num_inputs: Number of formal inputs; the rest are captures, named by the caller.
            dim_names: Original dim parameters of renamed symbols.
        """
        for value in graph.inputs[:num_inputs]:
            self.names[value] = self.fresh(value.name or "input")
            proto.input.append(_value_info(self.names[value], value.type, dim_names))
        for value in graph.inputs:
            self.sizes.note(value)
        own = self._name_outputs(graph)
        for node in graph:
            for value in node.outputs:
                self.names[value] = own.get(value) or self.fresh(value.name or node.op.name)
            self.emit_node(node)
        for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
            final = self.names[value]
            if self._may_return(value, final, own):
                pass  # the outputs of a body go by position: any name will do
            elif self.parent is not None or final != out_name:
                source, final = final, out_name if self.parent is None else self.fresh(out_name)
                self.emit("Identity", [source], [final], "", {})
            proto.output.append(_value_info(final, value.type, dim_names))
        proto.node.extend(self.nodes)
        proto.initializer.extend(self.initializers)

    def _may_return(self, value: Value, name: str, own: dict[Value, str]) -> bool:
        """Returns whether a body can list `value` as an output under the name that it has.

        Runtimes refuse bodies that return outer values; a weight may stand outside, or be shared.
        """
        if self.parent is None or own.pop(value, None) is None:
            return False
        producer = value.producer
        return (
            producer is None
            or producer.op is not weight
            or any(tensor.name == name for tensor in self.initializers)
        )

    def _name_outputs(self, graph: Graph) -> dict[Value, str]:
        """Reserves the names of the outputs; returns those that their values can carry."""
        own: dict[Value, str] = {}
        for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
            if self.parent is not None:
                out_name = self.fresh(out_name)
            self.taken.add(out_name)
            if value.producer is not None:
                own.setdefault(value, out_name)
        return own

    def emit_node(self, node: Node) -> None:
        """Emits one node, whose results have their names, and notes the sizes they show.

        Raises:
            UnsupportedError: When the operator has no emitter at this opset.
        """
        e = EmitContext(node, self.opset, self.profile, self)
        if node.op is literal:
            self.initializers.append(array_to_tensor(node.attrs["value"], e.name(node.output)))
        elif node.op is weight:
            if node.graph is None:
                raise AssertionError("node outside a graph")
            stored_name = node.attrs["name"]
            if not node.output.num_uses and stored_name in self.root.places:
                self.taken.discard(self.names[node.output])  # for the body that reads it
                return
            if self.parent is None and stored_name in self.transposed:
                self.names[node.output] = self._transposed(stored_name, node)
            else:
                stored = node.graph.scope.weights[stored_name]
                self.names[node.output] = self.weight(stored_name, stored, e.name(node.output))
        elif node.op is opaque:
            _emit_opaque(e)
        else:
            emitter = self.table.find(node.op, self.opset)
            if emitter is None:
                raise UnsupportedError(
                    f"operator `{node.op.name}` ({', '.join(node.loc[:1])}) cannot be emitted "
                    f"at opset {self.opset}"
                )
            emitter(e)
        for value in node.outputs:
            if value.num_uses or self.sizes.is_new(value):
                self.sizes.note(value)


def _value_info(name: str, type_: Type, dim_names: Mapping[str, str] | None) -> onnx.ValueInfoProto:
    """Declares a value; one of unknown element type is left to the runtime's own inference."""
    if isinstance(type_, TensorType) and type_.dtype is None:
        return onnx.ValueInfoProto(name=name)
    return helper.make_value_info(name, type_to_proto(type_, dim_names))


def _emit_opaque(e: EmitContext) -> None:
    attrs = e.node.attrs
    if not attrs["dialect"].startswith("onnx:"):
        raise AssertionError(f"`{attrs['op_type']}` was not refused")
    inputs = [e.name(value) for value in e.node.inputs]
    num_inputs = len(inputs) - attrs["num_captures"]
    captures = [value for value in e.node.inputs[num_inputs:] if value is not None]
    body_names = attrs["body_names"]
    values = {
        name: e.body(value, captures) if name in body_names else make_attribute(name, value)
        for name, value in attrs["attributes"]
    }
    e.graph.emit(
        attrs["op_type"], _cut(inputs[:num_inputs]), e.outputs,
        attrs["dialect"].removeprefix("onnx:"), values, e.node,
    )  # fmt: skip


def _cut(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names.pop()
    return names
