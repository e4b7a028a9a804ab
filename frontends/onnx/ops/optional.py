"""Importers of operators on optional values."""

from __future__ import annotations

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.frontends.onnx.types import type_from_proto
from regraft.ir.graph import Value
from regraft.ir.ops import optional as ops


def _optional(item: NodeImport) -> Value:
    declared = item.attr("type")  # an AttributeProto holding a TypeProto
    element = None if declared is None else type_from_proto(declared.tp, item.scope.sizes)
    return item.b.op(ops.optional, item.input(0), element=element)


IMPORTS: tuple[Import, ...] = (
    Import("Optional", {15: _optional}),
    Import("OptionalHasElement", {15: direct(ops.optional_has_element)}),
    Import("OptionalGetElement", {15: direct(ops.optional_get_element)}),
)
