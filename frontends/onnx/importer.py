"""Builds IR from ONNX graphs: names, scopes, captures, and the table of per-operator importers.

An importer translates one ONNX node of one since-version into IR operators of today's meaning; a
node whose operator has no importer becomes `opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from regraft.frontends.onnx.attributes import decode_attribute
from regraft.frontends.onnx.external import ExternalData
from regraft.frontends.onnx.signatures import is_unknown, signature, suggestion
from regraft.frontends.onnx.text_fields import check_graph_text
from regraft.frontends.onnx.types import Sizes, type_from_proto
from regraft.ir.builder import Builder
from regraft.ir.constants import Blob, constant_of, is_constant, literal, opaque, weight
from regraft.ir.errors import InputError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.types import UNKNOWN, DType, TensorType, Type

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Import:
    """How one ONNX operator is imported.

    Args:
        op_type: ONNX operator name.
        since: Importer by since-version; the largest version not above the model's opset applies.
        domain: ONNX domain (`""` is ai.onnx).
    """

    op_type: str
    since: Mapping[int, Importer]
    domain: str = ""


@dataclass(slots=True)
class NodeImport:
    """One ONNX node under import; what an importer works with.

    Attributes:
        proto: The node.
        version: Since-version of the importer that was chosen.
        opset: Opset version of the node's domain in the model.
        inputs: Operands (None when absent).
        attrs: Decoded attributes: ints, floats, str, tuples, numpy arrays, GraphProto.
        b: Builder positioned at the end of the graph under construction.
        scope: The name scope, for bodies.
    """

    proto: onnx.NodeProto
    version: int
    opset: int
    inputs: list[Value | None]
    attrs: dict[str, Any]
    b: Builder
    scope: NameScope

    def input(self, idx: int) -> Value | None:
        """Returns an operand or None when it is absent."""
        return self.inputs[idx] if idx < len(self.inputs) else None

    def require(self, idx: int) -> Value:
        """Returns an operand that must be present.

        Raises:
            InputError: When it is absent.
        """
        value = self.input(idx)
        if value is None:
            raise self.error(f"operand {idx} is missing")
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        """Returns an attribute or `default`."""
        return self.attrs.get(name, default)

    def const(self, idx: int, max_bytes: int = 1 << 20) -> Array | None:
        """Returns the content of a constant operand, or None when it is not constant."""
        return constant_of(self.input(idx), max_bytes)

    def ints(self, idx: int) -> tuple[int, ...] | None:
        """Returns a constant integer operand (scalar or 1-d) as a tuple, or None."""
        array = self.const(idx)
        return None if array is None else tuple(int(x) for x in array.reshape(-1))

    def either(self, idx: int) -> tuple[Value | None, Any]:
        """Splits an *either* operand: (None, static content) when known, else (operand, None)."""
        value = self.input(idx)
        if value is None:
            return None, None
        # the content of a float is a whole number in disguise: the operand keeps its type
        if value.content is None or value.dtype is None or value.dtype.is_float:
            return value, None
        return None, value.content

    def rank(self, idx: int = 0) -> int | None:
        """Returns the rank of an operand, or None."""
        value = self.input(idx)
        return None if value is None else value.rank

    def has_output(self, idx: int) -> bool:
        """Returns whether the node names its result `idx`."""
        return idx < len(self.proto.output) and bool(self.proto.output[idx])

    @property
    def num_outputs(self) -> int:
        """Number of results that the node lists (absent ones in the middle count)."""
        return len(self.proto.output)

    def opaque(self) -> Sequence[Value]:
        """Imports the node as opaque: for a variant that no spec expresses."""
        return import_opaque(self)

    def error(self, message: str, *, hint: str | None = None) -> InputError:
        """Returns an input error naming the node; the caller raises it."""
        return InputError(f"node `{node_label(self.proto)}`: {message}", hint=hint)

    def bodies(
        self, names: Sequence[str], formals: Sequence[Sequence[Type]]
    ) -> tuple[tuple[Graph, ...], list[Value]]:
        """Imports body graphs and unifies what they capture.

        Args:
            names: Attribute names of the bodies.
            formals: Types of the formal inputs, one list per body.

        Returns:
            The bodies, whose inputs are the formals and then the captures (the same for each
            body), and the captured outer values in that order.
        """
        scopes = [
            self.scope.child(self.attrs[name], types)
            for name, types in zip(names, formals, strict=True)
        ]
        captures = list(dict.fromkeys(outer for scope in scopes for outer in scope.captures))
        for scope in scopes:
            scope.order_captures(captures)
        return tuple(scope.graph for scope in scopes), captures

    def discard(self, bodies: Sequence[Graph], known: Collection[str]) -> None:
        """Forgets bodies that are imported anew: their own weights go, those in `known` stay."""
        weights = self.b.graph.scope.weights
        for node in (node for body in bodies for node in body.walk()):
            name = node.attrs["name"] if node.op is weight else None
            if name is not None and name not in known and name in weights:
                weights.remove(name)


Imported = Value | Sequence[Value | None]
Importer = Callable[[NodeImport], Imported]


class ImportTable:
    """Importers by (domain, operator)."""

    def __init__(self, *families: tuple[Import, ...]) -> None:
        self._rows: dict[tuple[str, str], list[tuple[int, Importer]]] = {}
        for family in families:
            for row in family:
                key = (row.domain, row.op_type)
                if key in self._rows:
                    raise ValueError(f"two importers for {key}")
                self._rows[key] = sorted(row.since.items(), reverse=True)

    def find(self, domain: str, op_type: str, opset: int) -> tuple[int, Importer] | None:
        """Returns (since-version, importer) for an operator at an opset, or None."""
        for since, importer in self._rows.get((domain, op_type), ()):
            if since <= opset:
                return since, importer
        return None

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._rows

    def keys(self) -> Sequence[tuple[str, str]]:
        """Returns every (domain, operator) that has an importer."""
        return tuple(self._rows)


@dataclass(slots=True)
class NameScope:
    """Names of one graph under construction, chained to the enclosing graph's."""

    graph: Graph
    table: ImportTable
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
        import_graph_nodes(proto, scope)
        return scope

    def inline(self, proto: onnx.GraphProto) -> list[Value]:
        """Imports the nodes of a body without inputs into this graph; returns its outputs."""
        return [value for _, value in import_contents(proto, self._nested(self.graph))]

    def _nested(self, graph: Graph) -> NameScope:
        return NameScope(
            graph, self.table, self.opsets, self.warnings, self.external, self.sizes,
            self.functions,
            parent=self, call_site=self.call_site,
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


def import_graph_nodes(proto: onnx.GraphProto, scope: NameScope) -> None:
    """Imports initializers, nodes and outputs of a graph into `scope`."""
    for name, value in import_contents(proto, scope):
        scope.graph.add_output(name, value)


def import_contents(proto: onnx.GraphProto, scope: NameScope) -> list[tuple[str, Value]]:
    """Imports initializers and nodes of a graph into `scope`; returns its outputs by name.

    Raises:
        InputError: For a name that is used but defined nowhere, defined twice, or a cycle.
    """
    from regraft.frontends.onnx.initializers import import_initializers
    from regraft.frontends.onnx.order import sorted_nodes

    check_graph_text(proto)
    for info in proto.value_info:
        if info.name and info.HasField("type"):
            scope.declared[info.name] = type_from_proto(info.type, scope.sizes)
    for info in proto.output:
        if info.HasField("type"):
            scope.declared[info.name] = type_from_proto(info.type, scope.sizes)
    import_initializers(proto, scope)
    for node in sorted_nodes(proto, scope):
        import_node(node, scope)
    outputs: list[tuple[str, Value]] = []
    for info in proto.output:
        value = scope.find(info.name)
        if value is None:
            raise InputError(
                f"graph output `{info.name}` is defined nowhere",
                hint="no node, input or initializer has that name",
            )
        outputs.append((info.name, value))
    return outputs


def _formal_type(proto: onnx.TypeProto, sizes: Sizes) -> Type:
    """Returns the declared type of a body input; its sizes may differ from run to run."""
    type_ = type_from_proto(proto, sizes)
    if isinstance(type_, TensorType) and type_.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else sizes.fresh() for dim in type_.shape)
        return type_.with_shape(dims)
    return type_


def import_node(proto: onnx.NodeProto, scope: NameScope) -> None:
    """Imports one node and binds its result names."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    opset = scope.opsets.get(domain, 1 if domain else 0)
    inputs: list[Value | None] = []
    for name in proto.input:
        value = scope.find(name) if name else None
        if name and value is None and name not in scope.absent:
            raise InputError(
                f"node `{node_label(proto)}` reads `{name}`, which is defined nowhere",
                hint="no node before it, graph input or initializer has that name",
            )
        inputs.append(value)
    if domain in _CHECKED_DOMAINS:
        _check_signature(proto, domain, opset, inputs)
    found = scope.table.find(domain, proto.op_type, opset)
    item = NodeImport(
        proto,
        found[0] if found else 0,
        opset,
        inputs,
        {attr.name: decode_attribute(attr) for attr in proto.attribute},
        Builder(scope.graph, loc=(*scope.call_site, f"onnx:{node_label(proto)}")),
        scope,
    )
    results = found[1](item) if found else _import_unknown(item)
    if isinstance(results, Value):
        results = (results,)
    for name, result in zip(proto.output, results, strict=False):
        if not name:
            continue
        if result is None:
            raise item.error(f"result `{name}` is not supported")
        if name in scope.values:
            raise InputError(
                f"value name `{name}` is defined twice, the second time by node "
                f"`{node_label(proto)}`",
                hint="every value needs a name of its own",
            )
        scope.values[name] = result
        if result.name is None and not is_constant(result):
            result.name = name
    if len(results) < len([n for n in proto.output if n]):
        raise item.error(f"has {len(proto.output)} results, the operator gives {len(results)}")


_CHECKED_DOMAINS = frozenset({"", "ai.onnx.ml"})


def _check_signature(
    proto: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]
) -> None:
    known = signature(domain, proto.op_type, opset)
    problem = None if known is None else known.problem(proto, inputs)
    if problem is not None:
        message, hint = problem
        raise InputError(
            f"node `{node_label(proto)}` ({proto.op_type} of opset {opset}): {message}",
            hint=hint or "the definition of the operator does not allow it; export the model again",
        )


def _import_unknown(item: NodeImport) -> Sequence[Value | None]:
    from regraft.frontends.onnx.functions import find_function, inline_call

    proto = item.proto
    function = find_function(item.scope.functions, proto)
    if function is not None:
        return inline_call(item, function)
    if is_unknown("" if proto.domain == "ai.onnx" else proto.domain, proto.op_type):
        raise item.error(f"unknown operator `{proto.op_type}`", hint=suggestion(proto.op_type))
    return import_opaque(item)


def import_opaque(item: NodeImport) -> Sequence[Value]:
    """Creates an opaque node that keeps the ONNX attributes; result types are the declared ones."""
    proto = item.proto
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    version = _since_version(proto.op_type, domain, item.opset)
    names = tuple(n for n, value in item.attrs.items() if isinstance(value, onnx.GraphProto))
    bodies: tuple[Graph, ...] = ()
    captures: list[Value] = []
    if names:
        bodies, captures = item.bodies(names, [[] for _ in names])
    node = item.b.graph.create(
        opaque,
        [*item.inputs, *captures],
        {
            "dialect": f"onnx:{domain}",
            "op_type": proto.op_type,
            "version": version,
            "attributes": tuple(
                (name, names.index(name) if name in names else _carried(value))
                for name, value in item.attrs.items()
            ),
            "body_names": names,
            "num_captures": len(captures),
        },
        num_outputs=len(proto.output),
        bodies=bodies,
        loc=item.b.loc,
        infer=False,
    )
    for name, value in zip(proto.output, node.outputs, strict=True):
        value.type = item.scope.declared.get(name, UNKNOWN)
    return node.outputs


def _carried(value: Any) -> Any:
    """Returns an attribute of an opaque node; protos become bytes, which print and compare."""
    if isinstance(value, onnx.AttributeProto):
        return Blob("onnx.AttributeProto", value.SerializeToString(deterministic=True))
    return value


def _since_version(op_type: str, domain: str, opset: int) -> int:
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset or 1, domain=domain)
    except onnx.defs.SchemaError:
        return opset
    return int(schema.since_version)


def node_label(proto: onnx.NodeProto) -> str:
    """Returns a short name of an ONNX node for messages and origins."""
    first = next((name for name in proto.output if name), "")
    label: str | bytes = proto.name  # bytes where it is not UTF-8
    if isinstance(label, bytes):
        label = label.decode("utf-8", "replace")
    return label or f"{proto.op_type}->{first}"


def direct(spec: OpSpec, *attrs: str, **renamed: str) -> Importer:
    """Returns an importer that maps operands one to one and copies the named attributes.

    Args:
        spec: The IR operator.
        attrs: ONNX attributes copied under their own name when present.
        renamed: IR attribute name -> ONNX attribute name.
    """

    def run(item: NodeImport) -> Sequence[Value]:
        values = {name: item.attrs[name] for name in attrs if name in item.attrs}
        values |= {ir: item.attrs[name] for ir, name in renamed.items() if name in item.attrs}
        return item.b.node(spec, *item.inputs, **values).outputs

    return run


__all__ = [
    "DType",
    "Import",
    "ImportTable",
    "Importer",
    "NameScope",
    "Node",
    "NodeImport",
    "TensorType",
    "direct",
    "import_graph_nodes",
    "literal",
    "weight",
]
