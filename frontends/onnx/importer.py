"""Builds IR from ONNX graphs, node by node, bodies and calls within their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from regraft.frontends.onnx.attributes import decode_attribute
from regraft.frontends.onnx.functions import find_function, inline_call
from regraft.frontends.onnx.initializers import import_initializers
from regraft.frontends.onnx.node_import import (
    Import,
    Imported,
    Importer,
    ImportTable,
    NodeImport,
    direct,
    import_opaque,
    node_label,
)
from regraft.frontends.onnx.order import operand_names, sorted_nodes
from regraft.frontends.onnx.scope import NameScope
from regraft.frontends.onnx.signatures import is_unknown, later_opset, signature, suggestion
from regraft.frontends.onnx.text_fields import check_graph_text
from regraft.frontends.onnx.types import type_from_proto
from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.errors import InputError
from regraft.ir.graph import Value

_CHECKED_DOMAINS = frozenset({"", "ai.onnx.ml"})


@dataclass(frozen=True, slots=True)
class Walk:
    """Imports graphs by a table of importers.

    Args:
        table: Importers by operator.
    """

    table: ImportTable

    def contents(self, proto: onnx.GraphProto, scope: NameScope) -> list[tuple[str, Value]]:
        """Imports initializers and nodes of a graph into `scope`; returns its outputs by name.

        Raises:
            InputError: For a name that is used but defined nowhere, defined twice, or a cycle.
        """
        check_graph_text(proto)
        for info in proto.value_info:
            if info.name and info.HasField("type"):
                scope.declared[info.name] = type_from_proto(info.type, scope.sizes)
        for info in proto.output:
            if info.HasField("type"):
                scope.declared[info.name] = type_from_proto(info.type, scope.sizes)
        import_initializers(proto, scope)
        for node in sorted_nodes(proto, scope):
            self.node(node, scope)
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

    def node(self, proto: onnx.NodeProto, scope: NameScope) -> None:
        """Imports one node and binds its result names."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        opset = scope.opsets.get(domain, 1 if domain else 0)
        inputs: list[Value | None] = []
        for name in operand_names(proto, domain):
            value = scope.find(name) if name else None
            if name and value is None and name not in scope.absent:
                raise InputError(
                    f"node `{node_label(proto)}` reads `{name}`, which is defined nowhere",
                    hint="no node before it, graph input or initializer has that name",
                )
            inputs.append(value)
        if domain in _CHECKED_DOMAINS:
            _check_signature(proto, domain, opset, inputs)
        found = self.table.find(domain, proto.op_type, opset)
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


def _check_signature(
    proto: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]
) -> None:
    known = signature(domain, proto.op_type, opset)
    problem = None if known is None else known.problem(proto, inputs)
    if problem is not None:
        message, hint = problem
        raise InputError(
            f"node `{node_label(proto)}` ({proto.op_type} of opset {opset}): {message}",
            hint=hint or _exported_again(later_opset(proto, domain, opset, inputs)),
        )


def _exported_again(opset: int | None) -> str:
    if opset is None:
        return "the definition of the operator does not allow it; export the model again"
    return f"opset {opset} is the lowest that allows it: export the model again at one from it on"


def _import_unknown(item: NodeImport) -> Sequence[Value | None]:
    proto = item.proto
    function = find_function(item.scope.functions, proto)
    if function is not None:
        return inline_call(item, function)
    if is_unknown("" if proto.domain == "ai.onnx" else proto.domain, proto.op_type):
        raise item.error(f"unknown operator `{proto.op_type}`", hint=suggestion(proto.op_type))
    return import_opaque(item)


__all__ = [
    "Import",
    "ImportTable",
    "Imported",
    "Importer",
    "NameScope",
    "NodeImport",
    "Walk",
    "direct",
    "node_label",
]
