"""Emits a module as an ONNX model."""

from __future__ import annotations

import onnx
from onnx import helper

from regraft.backends.onnx.emitter import (
    MIN_OPSET,
    EmitContext,
    EmitTable,
    GraphEmitter,
    make_attribute,
)
from regraft.backends.onnx.ops import FAMILIES
from regraft.backends.onnx.tensors import array_to_tensor, type_to_proto
from regraft.ir.constants import literal, opaque, weight
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph
from regraft.ir.module import Module


def to_proto(module: Module, *, profile: str = "onnx", opset: int | None = None) -> onnx.ModelProto:
    """Returns the module as a ModelProto with embedded weights.

    Raises:
        UnsupportedError: When an operator cannot be emitted.
    """
    table = EmitTable(*FAMILIES)
    opset = choose_opset(module, table, opset)
    emitter = GraphEmitter(table, opset, profile)
    graph = emit_graph(module.graph, emitter, module.name, len(module.graph.inputs))
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted(emitter.domains)]
    model = helper.make_model(graph, opset_imports=imports, producer_name="regraft")
    model.ir_version = 10 if opset < 23 else 13
    return model


def choose_opset(module: Module, table: EmitTable, requested: int | None) -> int:
    """Returns the smallest opset, not below the source's, at which every operator has a row."""
    opset = max(MIN_OPSET, requested or module.meta.get("onnx.opset", 0) or 0)
    for node in module.graph.walk():
        if node.op in (literal, weight, opaque):
            continue
        least = table.min_opset(node)
        if least is not None:
            opset = max(opset, least)
    return min(opset, 26) if requested is None else opset


def emit_graph(graph: Graph, emitter: GraphEmitter, name: str, num_inputs: int) -> onnx.GraphProto:
    """Emits one graph; its first `num_inputs` inputs are formal."""
    inputs = []
    for value in graph.inputs[:num_inputs]:
        emitter.names[value] = emitter.fresh(value.name or "input")
        inputs.append(helper.make_value_info(emitter.names[value], type_to_proto(value.type)))
    for value in graph.inputs:
        emitter.note_sizes(value)
    output_names: dict[object, str] = {}
    for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
        if value.producer is not None and value not in output_names:
            output_names[value] = emitter.fresh(out_name)
    for node in graph:
        for value in node.outputs:
            emitter.names[value] = output_names.get(value) or emitter.fresh(
                value.name or node.op.name
            )
        _emit_node(EmitContext(node, emitter.opset, emitter.profile, emitter))
        for value in node.outputs:
            if value.num_uses:
                emitter.note_sizes(value)
    outputs = []
    for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
        if emitter.names[value] != out_name:
            emitter.emit("Identity", [emitter.names[value]], [out_name], "", {})
        outputs.append(helper.make_value_info(out_name, type_to_proto(value.type)))
    proto = helper.make_graph(emitter.nodes, name, inputs, outputs, emitter.initializers)
    return proto


def _emit_node(e: EmitContext) -> None:
    node, graph = e.node, e.graph
    if node.op is literal:
        graph.initializers.append(array_to_tensor(node.attrs["value"], e.name(node.output)))
        return
    if node.op is weight:
        if node.graph is None:
            raise AssertionError("node outside a graph")
        stored = node.graph.scope.weights[node.attrs["name"]]
        graph.initializers.append(array_to_tensor(stored.numpy(), e.name(node.output)))
        return
    if node.op is opaque:
        dialect = node.attrs["dialect"]
        if not dialect.startswith("onnx:"):
            raise UnsupportedError(f"operator `{node.attrs['op_type']}` of {dialect} has no emitter")
        e.emit(
            node.attrs["op_type"], e.inputs, domain=dialect.removeprefix("onnx:"),
            **{name: make_attribute(name, value) for name, value in node.attrs["attributes"]},
        )  # fmt: skip
        return
    emitter = graph.table.find(node.op, e.opset)
    if emitter is None:
        raise UnsupportedError(
            f"operator `{node.op.name}` ({', '.join(node.loc[:1])}) cannot be emitted at opset {e.opset}"
        )
    emitter(e)
