"""Loads ONNX files and ModelProtos."""

from __future__ import annotations

from pathlib import Path

import onnx

from regraft.frontends.onnx.importer import ImportTable, NameScope, import_graph_nodes
from regraft.frontends.onnx.ops import FAMILIES
from regraft.frontends.onnx.types import type_from_proto
from regraft.ir.graph import Graph
from regraft.ir.module import Module


def load_onnx(source: str | Path | onnx.ModelProto) -> Module:
    """Returns the module of an ONNX file or ModelProto.

    Raises:
        InputError: When the model cannot be used as it is.
    """
    proto = source if isinstance(source, onnx.ModelProto) else onnx.load(source)
    opsets = {
        "" if item.domain == "ai.onnx" else item.domain: item.version
        for item in proto.opset_import
    }
    module = Module(Graph(), proto.graph.name or "model")
    table = ImportTable(*FAMILIES)
    scope = NameScope(module.graph, table, opsets, module.warnings)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for info in proto.graph.input:
        if info.name not in constants:
            type_ = type_from_proto(info.type, module.graph.scope, name=info.name)
            scope.values[info.name] = module.graph.add_input(info.name, type_)
    import_graph_nodes(proto.graph, scope)
    module.meta["onnx.opset"] = opsets.get("", 0)
    module.meta["onnx.ir_version"] = proto.ir_version
    return module
