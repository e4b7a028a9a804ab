"""Loads ONNX files and ModelProtos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from regraft.frontends.onnx.external import ExternalData
from regraft.frontends.onnx.functions import function_table
from regraft.frontends.onnx.importer import (
    Import,
    ImportTable,
    NameScope,
    Walk,
)
from regraft.frontends.onnx.ops import FAMILIES
from regraft.frontends.onnx.reader import check_proto, read_proto
from regraft.frontends.onnx.types import Sizes, type_from_proto
from regraft.ir.collector import collector_paused
from regraft.ir.dims import known_different
from regraft.ir.errors import InputError
from regraft.ir.graph import Graph
from regraft.ir.growth import Growth
from regraft.ir.module import Module
from regraft.ir.types import TensorType, Type

_MAX_NAMED = 5


def load_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    families: Sequence[tuple[Import, ...]] = FAMILIES,
    growth: Growth | None = None,
) -> Module:
    """Returns the module of an ONNX file or ModelProto; external data stays on disk.

    Args:
        source: The file or model.
        families: Importers, those of plugins among them.
        growth: How far the file of external data is written, where it is still being written.

    Raises:
        InputError: When the model cannot be used as it is.
    """
    if isinstance(source, onnx.ModelProto):
        check_proto(source)
        return import_model(source, None, families)
    path = Path(source)
    return import_model(read_proto(path), path.parent, families, growth)


def import_model(
    proto: onnx.ModelProto,
    root: Path | None,
    families: Sequence[tuple[Import, ...]] = FAMILIES,
    growth: Growth | None = None,
) -> Module:
    """Returns the module of a parsed model whose external data lies below `root`."""
    opsets = {
        "" if item.domain == "ai.onnx" else item.domain: item.version for item in proto.opset_import
    }
    module = Module(Graph(), proto.graph.name or "model")
    scope = NameScope(
        module.graph, Walk(ImportTable(*families)), opsets, module.warnings,
        ExternalData(root, growth), Sizes(module.graph.scope), function_table(proto),
    )  # fmt: skip
    with collector_paused():
        _import_inputs(proto, scope)
        scope.fill(proto.graph)
    _check_declarations(proto.graph, scope)
    module.meta |= {
        "onnx.opset": opsets.get("", 0),
        "onnx.domains": {d: v for d, v in opsets.items() if d},
        "onnx.ir_version": proto.ir_version,
        "onnx.metadata": {_text(item.key): _text(item.value) for item in proto.metadata_props},
        "onnx.producer": f"{_text(proto.producer_name)} {_text(proto.producer_version)}".strip(),
        "onnx.doc": _text(proto.doc_string),
        "onnx.model_version": proto.model_version,
        "onnx.dim_names": dict(_dim_names(proto.graph, scope.sizes)),
    }
    shapes = dict(_declared_shapes(module, scope))
    if shapes:
        module.meta["onnx.output_shapes"] = shapes
    return module


def _text(raw: str | bytes) -> str:
    """Returns a note as text; protobuf hands out bytes where it is not UTF-8."""
    return raw if isinstance(raw, str) else raw.decode(errors="replace")


def _import_inputs(proto: onnx.ModelProto, scope: NameScope) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    fixed = []
    for info in proto.graph.input:
        if info.name in constants:
            fixed.append(info.name)
            continue
        if info.name in scope.values:
            raise InputError(
                f"graph input `{info.name}` is declared twice", hint="rename one of them"
            )
        type_ = type_from_proto(info.type, scope.sizes, name=info.name)
        scope.values[info.name] = scope.graph.add_input(info.name, type_)
    if fixed and proto.ir_version >= 4:  # before version 4 every initializer had to be an input
        scope.warnings.append(
            f"{len(fixed)} inputs have a default value and became constants: "
            f"{', '.join(fixed[:_MAX_NAMED])}"
        )


def _check_declarations(graph: onnx.GraphProto, scope: NameScope) -> None:
    """Compares declared types with inferred ones; contradicted claims go, with a warning."""
    wrong = []
    for name, declared in scope.declared.items():
        value = scope.values.get(name)
        if value is None:
            continue
        if contradicts(declared, value.type):
            wrong.append(f"`{name}` (declared {declared}, inferred {value.type})")
    if wrong:
        more = f" and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        scope.warnings.append(
            f"declared types contradict inference, ignored: {', '.join(wrong[:_MAX_NAMED])}{more}"
        )


def contradicts(declared: Type, inferred: Type) -> bool:
    """Returns whether no value can have both types."""
    if not isinstance(declared, TensorType) or not isinstance(inferred, TensorType):
        return False
    if declared.dtype and inferred.dtype and declared.dtype is not inferred.dtype:
        return True
    if declared.shape is None or inferred.shape is None:
        return False
    return len(declared.shape) != len(inferred.shape) or any(
        isinstance(a, int) and known_different(a, b)
        for a, b in zip(declared.shape, inferred.shape, strict=True)
    )


def _declared_shapes(module: Module, scope: NameScope) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the declared sizes of outputs of which inference knows no rank, -1 for no number.

    They are claims that nothing in the module may rely on; a file that is written needs some.
    """
    for name, value in zip(module.graph.output_names, module.graph.outputs, strict=True):
        type_, claim = value.type, scope.declared.get(name)
        if not isinstance(type_, TensorType) or not isinstance(claim, TensorType):
            continue
        if type_.shape is None and claim.shape is not None:
            yield name, tuple(dim if isinstance(dim, int) else -1 for dim in claim.shape)


def _dim_names(graph: onnx.GraphProto, sizes: Sizes) -> Iterator[tuple[str, str]]:
    """Yields symbol and dim parameter where the interface names a size that is no identifier."""
    for info in (*graph.input, *graph.output):
        if info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                symbol = sizes.by_text.get(dim.dim_param)
                if symbol is not None and symbol.name != dim.dim_param:
                    yield symbol.name, dim.dim_param
