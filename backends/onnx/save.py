"""Emits a module as an ONNX model, in memory or into files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from regraft.backends.onnx.emitter import Emit, EmitTable
from regraft.backends.onnx.foreign import refuse_foreign
from regraft.backends.onnx.graph_emitter import GraphEmitter
from regraft.backends.onnx.ops import FAMILIES
from regraft.backends.onnx.opsets import choose_opset, ir_version
from regraft.backends.onnx.placement import place_in_bodies
from regraft.backends.onnx.shared_matrices import transposed_matrices
from regraft.backends.onnx.storage import (
    EXTERNAL_ABOVE,
    Embedded,
    External,
    Storage,
    Streamed,
    data_file_name,
)
from regraft.ir.collector import collector_paused
from regraft.ir.growth import Growth
from regraft.ir.module import Module

PROFILES = ("onnx", "ort-cpu", "ort-cuda")

Watch = Callable[[Growth | None], None]
"""Hears that files begin to be written, and how far they are."""


def to_proto(
    module: Module,
    *,
    profile: str = "onnx",
    opset: int | None = None,
    storage: Storage | None = None,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
) -> onnx.ModelProto:
    """Returns the module as a ModelProto.

    Args:
        module: The module; it is not changed.
        profile: `onnx` (standard operators only), `ort-cpu` or `ort-cuda`.
        opset: Emission opset; default: the source's, raised only when needed.
        storage: Where weights go; default: inside the model.
        families: Emitters, those of plugins among them.

    Raises:
        UnsupportedError: When an operator cannot be emitted.
    """
    refuse_foreign(module)
    table = EmitTable(*families)
    opset = choose_opset(module, table, opset, profile)
    # a file that refers to others is read by tools that look for references in the main graph
    places = {} if isinstance(storage, External) else place_in_bodies(module.graph)
    emitter = GraphEmitter(
        table, opset, profile, storage=storage or Embedded(), graph=module.graph, places=places,
        transposed=transposed_matrices(module.graph),
    )  # fmt: skip
    dim_names = module.meta.get("onnx.dim_names", {})
    model = onnx.ModelProto(ir_version=ir_version(opset), producer_name="regraft")
    model.graph.name = module.name
    with collector_paused():
        emitter.emit_graph(module.graph, model.graph, len(module.graph.inputs), dim_names)
    _declare_outputs(model.graph, module.meta.get("onnx.output_shapes", {}))
    known = module.meta.get("onnx.domains", {})
    model.opset_import.append(helper.make_opsetid("", opset))
    for domain in sorted(emitter.domains):
        model.opset_import.append(helper.make_opsetid(domain, known.get(domain, 1)))
    model.doc_string = module.meta.get("onnx.doc", "")
    model.model_version = module.meta.get("onnx.model_version", 0)
    helper.set_model_props(model, module.meta.get("onnx.metadata", {}))
    return model


def _declare_outputs(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Declares outputs of unknown rank as the source did: no model is valid without a rank."""
    for info in graph.output:
        tensor = info.type.tensor_type
        if info.name in shapes and tensor.elem_type and not tensor.HasField("shape"):
            tensor.shape.SetInParent()
            for size in shapes[info.name]:
                dim = tensor.shape.dim.add()
                if size >= 0:
                    dim.dim_value = size


def save_onnx(
    module: Module,
    path: Path,
    *,
    profile: str = "onnx",
    opset: int | None = None,
    external_above: int = EXTERNAL_ABOVE,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
    watch: Watch | None = None,
) -> list[Path]:
    """Writes a model file, and an external-data file when the weights are many.

    Weights are read and written one at a time. The caller gives a path in a temporary folder and
    renames the files when all is well.

    Args:
        module: The module; it is not changed, but for warnings of weights with NaN.
        path: The model file.
        profile: `onnx`, `ort-cpu` or `ort-cuda`.
        opset: Emission opset; default: the source's, raised only when needed.
        external_above: Bytes of weights above which they go into a file of their own.
        families: Emitters, those of plugins among them.
        watch: Called before the data file is written, when the model file is: who loads it with
            this growth reads the weights as they arrive. Called with None before a model is
            written that holds its weights.

    Returns:
        The files written.

    Raises:
        OSError: When the disk is full or the folder cannot be written.
        UnsupportedError: When an operator cannot be emitted.
    """
    weights = module.weights
    other = transposed_matrices(module.graph)  # these are no part of the file
    total = sum(weights[name].nbytes for name in weights if name not in other)
    watch = watch or (lambda growth: None)
    if total <= external_above:
        watch(None)
        inside = Streamed()
        proto = to_proto(module, profile=profile, opset=opset, storage=inside, families=families)
        with path.open("wb", buffering=0) as file:
            inside.write(file, proto)
        return [path]
    data_path = path.with_name(data_file_name(path))
    storage = External(data_path.name)
    model = to_proto(module, profile=profile, opset=opset, storage=storage, families=families)
    path.write_bytes(model.SerializeToString())
    with data_path.open("wb", buffering=0) as file, Growth() as growth:
        file.truncate(storage.num_bytes)  # so that the model can be loaded while weights arrive
        watch(growth)
        storage.write(file, growth)
    module.warnings += [f"weight `{name}` contains NaN" for name in storage.nan_names]
    return [path, data_path]
