"""Initializers to weights and literals."""

from __future__ import annotations

import onnx

from regraft.frontends.onnx.importer import NameScope
from regraft.frontends.onnx.tensors import tensor_to_array
from regraft.ir.builder import INLINE_BYTES, Builder
from regraft.ir.errors import InputError
from regraft.ir.weights import ArrayWeight, Role


def import_initializers(proto: onnx.GraphProto, scope: NameScope) -> None:
    """Creates a constant per initializer: floats of rank >= 1 are parameters, the rest constants."""
    b = Builder(scope.graph)
    for tensor in proto.initializer:
        if tensor.name in scope.values:
            raise InputError(f"value name `{tensor.name}` is defined twice")
        array = tensor_to_array(tensor)
        if array.nbytes <= INLINE_BYTES and (array.ndim == 0 or array.dtype.kind in "iub"):
            value = b.constant(array, name=tensor.name)
        else:
            is_param = array.dtype.kind in "fV" and array.ndim >= 1 and array.size > 1
            role = Role.PARAM if is_param else Role.CONST
            value = b.weight(tensor.name, ArrayWeight(array), role)
        scope.values[tensor.name] = value
