"""Initializers to weights and literals."""

from __future__ import annotations

import numpy as np
import onnx

from regraft.frontends.onnx.scope import NameScope
from regraft.frontends.onnx.tensors import sparse_to_array, tensor_to_weight
from regraft.ir.builder import INLINE_BYTES, Builder
from regraft.ir.errors import InputError
from regraft.ir.graph import Value
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight, Role, Weight, contains_nan

_NAN_SCAN_BYTES = 1 << 20
"""Embedded tensors are scanned for NaN; mapped ones up to this size, so that loading stays lazy."""


def import_initializers(proto: onnx.GraphProto, scope: NameScope) -> None:
    """Creates a constant per initializer: floats of rank >= 1 are parameters, others constants."""
    b = Builder(scope.graph)
    for name, tensor in _by_name(proto, scope.warnings).items():
        if isinstance(tensor, onnx.TensorProto):
            _define(name, tensor_to_weight(tensor, scope.external), scope, b)
        else:
            _define(name, ArrayWeight(sparse_to_array(tensor)), scope, b)


def _by_name(
    proto: onnx.GraphProto, warnings: list[str]
) -> dict[str, onnx.TensorProto | onnx.SparseTensorProto]:
    """Returns the initializers that have a meaning: of equal names the last, as runtimes do."""
    named: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {}
    nameless, repeated = 0, []
    for tensor, name in (
        *((tensor, tensor.name) for tensor in proto.initializer),
        *((sparse, sparse.values.name) for sparse in proto.sparse_initializer),
    ):
        if not name:
            nameless += 1
            continue
        if name in named:
            repeated.append(f"`{name}`")
        named[name] = tensor
    if nameless:
        warnings.append(f"{nameless} initializers without a name are ignored")
    if repeated:
        warnings.append(
            f"the last of several initializers of one name is used: {', '.join(repeated)}"
        )
    return named


def _define(name: str, stored: Weight, scope: NameScope, b: Builder) -> None:
    if name in scope.values:
        raise InputError(
            f"value name `{name}` is defined twice",
            hint="an initializer has the same name as an input",
        )
    scope.values[name] = _constant(name, stored, b)
    if stored.dtype.is_float and _has_nan(stored):
        scope.warnings.append(f"weight `{name}` contains NaN")


def _constant(name: str, stored: Weight, b: Builder) -> Value:
    rank, nbytes = len(stored.shape), stored.nbytes
    is_float = stored.dtype.is_float
    if nbytes <= INLINE_BYTES and (rank == 0 or not is_float) and stored.dtype is not DType.STRING:
        return b.constant(np.array(stored.numpy()), name=name)
    size = int(np.prod(stored.shape, dtype=np.int64))
    role = Role.PARAM if is_float and rank >= 1 and size > 1 else Role.CONST
    return b.weight(name, stored, role)


def _has_nan(stored: Weight) -> bool:
    if isinstance(stored, MappedWeight) and stored.nbytes > _NAN_SCAN_BYTES:
        return False  # the writer looks while it copies
    return stored.dtype.bits >= 16 and contains_nan(stored.numpy())
