"""One ONNX node under import, and the tables of per-operator importers.

An importer translates one ONNX node of one since-version into IR operators of today's meaning; a
node whose operator has no importer becomes `opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from regraft.frontends.onnx.scope import NameScope
from regraft.ir.builder import Builder
from regraft.ir.constants import Blob, constant_of, opaque, weight
from regraft.ir.errors import InputError
from regraft.ir.graph import Graph, Value
from regraft.ir.opspec import OpSpec
from regraft.ir.types import UNKNOWN, Type

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
