"""Initializers to weights and literals."""

from __future__ import annotations

import numpy as np
import onnx

from regraft.frontends.onnx.importer import NameScope
from regraft.frontends.onnx.tensors import sparse_to_array, tensor_to_weight
from regraft.ir.builder import INLINE_BYTES, Builder
from regraft.ir.errors import InputError
from regraft.ir.graph import Value
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, MappedWeight, Role, Weight, contains_nan

_NAN_SCAN_BYTES = 1 << 20
"""Embedded tensors are scanned for NaN; mapped ones up to this size, so that loading stays lazy."""


def import_initializers(proto: onnx.GraphProto, scope: NameScope) -> None:
    """Creates a constant per initializer: floats of rank >= 1 are parameters, the rest constants."""
    b = Builder(scope.graph)
    for tensor in proto.initializer:
        _define(tensor.name, tensor_to_weight(tensor, scope.external), scope, b)
    for sparse in proto.sparse_initializer:
        _define(sparse.values.name, ArrayWeight(sparse_to_array(sparse)), scope, b)


def _define(name: str, stored: Weight, scope: NameScope, b: Builder) -> None:
    if not name:
        raise InputError("an initializer has no name")
    if name in scope.values:
        raise InputError(f"value name `{name}` is defined twice", hint="an initializer has it too")
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
