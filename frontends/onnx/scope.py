"""Names of ONNX graphs under construction: where a name is found, and what bodies capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from regraft.frontends.onnx.external import ExternalData
from regraft.frontends.onnx.types import Sizes, type_from_proto
from regraft.ir.constants import is_constant
from regraft.ir.graph import Graph, Value
from regraft.ir.types import TensorType, Type


class GraphWalk(Protocol):
    """Imports graphs and nodes into a scope; it comes back to scopes for bodies and calls."""

    def contents(self, proto: onnx.GraphProto, scope: NameScope) -> list[tuple[str, Value]]:
        """Imports initializers and nodes of a graph; returns its outputs by name."""

    def node(self, proto: onnx.NodeProto, scope: NameScope) -> None:
        """Imports one node and binds its result names."""


@dataclass(slots=True)
class NameScope:
    """Names of one graph under construction, chained to the enclosing graph's."""

    graph: Graph
    walk: GraphWalk
    opsets: Mapping[str, int]
    warnings: list[str]
    external: ExternalData
    sizes: Sizes
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto] = field(default_factory=dict)
    parent: NameScope | None = None
    call_site: tuple[str, ...] = ()
    absent: set[str] = field(default_factory=set)
    values: dict[str, Value] = field(default_factory=dict)
    captures: dict[Value, Value] = field(default_factory=dict)
    declared: dict[str, Type] = field(default_factory=dict)
    num_formals: int = 0

    def find(self, name: str) -> Value | None:
        """Returns the value of a name, capturing it from an enclosing graph when needed."""
        found = self.values.get(name)
        if found is not None:
            return found
        if self.parent is None:
            return None
        outer = self.parent.find(name)
        if outer is None:
            return None
        if self.graph is self.parent.graph:  # an inlined branch
            found = outer
        elif is_constant(outer):
            found = self._copy_constant(outer)
        else:
            found = self.captures.get(outer)
            if found is None:
                found = self.graph.add_input(outer.name, outer.type)
                found.content = outer.content
                self.captures[outer] = found
        self.values[name] = found
        return found

    def _copy_constant(self, outer: Value) -> Value:
        producer = outer.producer
        if producer is None:
            raise AssertionError("a constant without a producer")
        copy = self.graph.create(producer.op, (), producer.attrs, before=self.graph.first)
        copy.output.name = outer.name
        return copy.output

    def child(self, proto: onnx.GraphProto, formals: Sequence[Type]) -> NameScope:
        """Imports a body graph with formal inputs of the given types (declared ones beyond)."""
        scope = self._nested(Graph(self.graph.scope))
        for i, info in enumerate(proto.input):
            type_ = formals[i] if i < len(formals) else _formal_type(info.type, self.sizes)
            scope.values[info.name] = scope.graph.add_input(info.name, type_)
        scope.num_formals = len(proto.input)
        scope.fill(proto)
        return scope

    def fill(self, proto: onnx.GraphProto) -> None:
        """Imports initializers, nodes and outputs of a graph."""
        for name, value in self.walk.contents(proto, self):
            self.graph.add_output(name, value)

    def inline(self, proto: onnx.GraphProto) -> list[Value]:
        """Imports the nodes of a body without inputs into this graph; returns its outputs."""
        return [value for _, value in self.walk.contents(proto, self._nested(self.graph))]

    def _nested(self, graph: Graph) -> NameScope:
        return NameScope(
            graph, self.walk, self.opsets, self.warnings, self.external, self.sizes,
            self.functions, parent=self, call_site=self.call_site,
        )  # fmt: skip

    def order_captures(self, outers: Sequence[Value]) -> None:
        """Makes the graph's inputs the formals followed by one input per captured value."""
        inputs = self.graph.inputs[: self.num_formals]
        for outer in outers:
            inner = self.captures.get(outer)
            if inner is None:
                inner = Value(outer.name, outer.type, None, 0, self.graph)
                inner.content = outer.content
            inputs.append(inner)
        self.graph.inputs = inputs
        for i, value in enumerate(inputs):
            value.index = i


def _formal_type(proto: onnx.TypeProto, sizes: Sizes) -> Type:
    """Returns the declared type of a body input; its sizes may differ from run to run."""
    type_ = type_from_proto(proto, sizes)
    if isinstance(type_, TensorType) and type_.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else sizes.fresh() for dim in type_.shape)
        return type_.with_shape(dims)
    return type_
