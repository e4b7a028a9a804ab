"""Emits a module as an ONNX model, in memory or into files."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from regraft.backends.onnx.emitter import EmitContext, EmitTable, GraphEmitter, make_attribute
from regraft.backends.onnx.opsets import choose_opset, ir_version
from regraft.backends.onnx.ops import FAMILIES
from regraft.backends.onnx.storage import (
    EXTERNAL_ABOVE,
    Embedded,
    External,
    Storage,
    data_file_name,
)
from regraft.backends.onnx.tensors import array_to_tensor, type_to_proto
from regraft.ir.collector import collector_paused
from regraft.ir.constants import literal, opaque, weight
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType, Type

PROFILES = ("onnx", "ort-cpu", "ort-cuda")


def to_proto(
    module: Module,
    *,
    profile: str = "onnx",
    opset: int | None = None,
    storage: Storage | None = None,
) -> onnx.ModelProto:
    """Returns the module as a ModelProto.

    Args:
        module: The module; it is not changed.
        profile: `onnx` (standard operators only), `ort-cpu` or `ort-cuda`.
        opset: Emission opset; default: the source's, raised only when needed.
        storage: Where weights go; default: inside the model.

    Raises:
        UnsupportedError: When an operator cannot be emitted.
    """
    table = EmitTable(*FAMILIES)
    opset = choose_opset(module, table, opset)
    emitter = GraphEmitter(table, opset, profile, storage=storage or Embedded())
    dim_names = module.meta.get("onnx.dim_names", {})
    with collector_paused():
        graph = emit_graph(module.graph, emitter, module.name, len(module.graph.inputs), dim_names)
    known = module.meta.get("onnx.domains", {})
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, known.get(d, 1)) for d in sorted(emitter.domains)]
    model = helper.make_model(graph, opset_imports=imports, producer_name="regraft")
    model.ir_version = ir_version(opset)
    model.doc_string = module.meta.get("onnx.doc", "")
    model.model_version = module.meta.get("onnx.model_version", 0)
    helper.set_model_props(model, module.meta.get("onnx.metadata", {}))
    return model


def save_onnx(
    module: Module,
    path: Path,
    *,
    profile: str = "onnx",
    opset: int | None = None,
    external_above: int = EXTERNAL_ABOVE,
) -> list[Path]:
    """Writes a model file, and an external-data file when the weights are many.

    Weights are read and written one at a time. The caller gives a path in a temporary folder and
    renames the files when all is well.

    Returns:
        The files written.

    Raises:
        OSError: When the disk is full or the folder cannot be written.
        UnsupportedError: When an operator cannot be emitted.
    """
    weights = module.weights
    total = sum(weights[name].nbytes for name in weights)
    if total <= external_above:
        path.write_bytes(to_proto(module, profile=profile, opset=opset).SerializeToString())
        return [path]
    data_path = path.with_name(data_file_name(path))
    with data_path.open("wb") as file:
        storage = External(file, data_path.name)
        model = to_proto(module, profile=profile, opset=opset, storage=storage)
    module.warnings += [f"weight `{name}` contains NaN" for name in storage.nan_names]
    path.write_bytes(model.SerializeToString())
    return [path, data_path]


def emit_graph(
    graph: Graph,
    emitter: GraphEmitter,
    name: str,
    num_inputs: int,
    dim_names: dict[str, str] | None = None,
) -> onnx.GraphProto:
    """Emits one graph; its first `num_inputs` inputs are formal.

    Args:
        graph: The graph.
        emitter: The emitter to fill.
        name: Name of the GraphProto.
        num_inputs: Number of formal inputs; the rest are captures, named by the caller.
        dim_names: Original dim parameters of renamed symbols.
    """
    inputs = []
    for value in graph.inputs[:num_inputs]:
        emitter.names[value] = emitter.fresh(value.name or "input")
        inputs.append(_value_info(emitter.names[value], value.type, dim_names))
    for value in graph.inputs:
        emitter.note_sizes(value)
    output_names: dict[Value, str] = {}
    for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
        if value.producer is not None and value not in output_names:
            output_names[value] = emitter.fresh(out_name)
    for node in graph:
        for value in node.outputs:
            emitter.names[value] = output_names.get(value) or emitter.fresh(
                value.name or node.op.name
            )
        emit_node(EmitContext(node, emitter.opset, emitter.profile, emitter))
        for value in node.outputs:
            if value._uses or emitter.shows_new_size(value):
                emitter.note_sizes(value)
    outputs = []
    for out_name, value in zip(graph.output_names, graph.outputs, strict=True):
        final = emitter.names[value]
        if emitter.parent is not None and output_names.pop(value, None) is not None:
            pass  # the outputs of a body go by position: any name will do
        elif final != out_name:
            source, final = final, out_name if emitter.parent is None else emitter.fresh(out_name)
            emitter.emit("Identity", [source], [final], "", {})
        outputs.append(_value_info(final, value.type, dim_names))
    return helper.make_graph(emitter.nodes, name, inputs, outputs, emitter.initializers)


def _value_info(
    name: str, type_: Type, dim_names: dict[str, str] | None
) -> onnx.ValueInfoProto:
    """Declares a value; one of unknown element type is left to the runtime's own inference."""
    if isinstance(type_, TensorType) and type_.dtype is None:
        return onnx.ValueInfoProto(name=name)
    return helper.make_value_info(name, type_to_proto(type_, dim_names))


def emit_node(e: EmitContext) -> None:
    """Emits one node, whose results have their names.

    Raises:
        UnsupportedError: When the operator has no emitter at this opset.
    """
    node, graph = e.node, e.graph
    if node.op is literal:
        graph.initializers.append(array_to_tensor(node.attrs["value"], e.name(node.output)))
    elif node.op is weight:
        if node.graph is None:
            raise AssertionError("node outside a graph")
        stored_name = node.attrs["name"]
        stored = node.graph.scope.weights[stored_name]
        graph.names[node.output] = graph.weight(stored_name, stored, e.name(node.output))
    elif node.op is opaque:
        _emit_opaque(e)
    else:
        emitter = graph.table.find(node.op, e.opset)
        if emitter is None:
            raise UnsupportedError(
                f"operator `{node.op.name}` ({', '.join(node.loc[:1])}) cannot be emitted "
                f"at opset {e.opset}"
            )
        emitter(e)


def _emit_opaque(e: EmitContext) -> None:
    attrs = e.node.attrs
    if not attrs["dialect"].startswith("onnx:"):
        raise UnsupportedError(
            f"operator `{attrs['op_type']}` of {attrs['dialect']} has no ONNX form",
            hint="give a plugin with an emitter for it",
        )
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
