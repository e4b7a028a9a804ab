"""TensorProto to numpy arrays and weights, sizes checked before anything is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from regraft.frontends.onnx.external import ExternalData
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.errors import InputError
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Weight, unpack

Array = np.ndarray[Any, Any]

_FIELDS: dict[int, tuple[str, int]] = {
    # element type -> field of TensorProto, entries of the field per element
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}


def tensor_type(tensor: onnx.TensorProto) -> tuple[DType, tuple[int, ...]]:
    """Returns the element type and shape that a tensor declares.

    Raises:
        InputError: For an unknown element type or a negative size.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InputError(f"tensor `{tensor.name}`: unknown element type {tensor.data_type}")
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape):
        raise InputError(f"tensor `{tensor.name}`: negative size in {list(shape)}")
    return dtype, shape


def tensor_to_weight(tensor: onnx.TensorProto, external: ExternalData) -> Weight:
    """Returns a tensor as a weight; external data stays in its file.

    Raises:
        InputError: When the stored bytes do not fit the declared type and shape.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        dtype, shape = tensor_type(tensor)
        return external.weight(tensor, dtype, shape)
    return ArrayWeight(tensor_to_array(tensor))


def tensor_to_array(tensor: onnx.TensorProto) -> Array:
    """Returns the content of an embedded tensor; do not write to it.

    Raises:
        InputError: When the stored bytes do not fit the declared type and shape.
    """
    dtype, shape = tensor_type(tensor)
    if tensor.data_location == TensorProto.EXTERNAL:
        raise InputError(
            f"tensor `{tensor.name}`: external data where the tensor must be embedded"
        )
    count = 1
    for dim in shape:
        count *= dim
    if dtype is not DType.STRING and tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != dtype.nbytes(count):
            raise InputError(
                f"tensor `{tensor.name}`: {len(raw)} bytes are stored, {dtype}{list(shape)} "
                f"takes {dtype.nbytes(count)}"
            )
        array = unpack(np.frombuffer(raw, np.uint8), dtype, shape)
    else:
        _check_count(tensor, dtype, count)
        array = numpy_helper.to_array(tensor)
        if dtype is DType.STRING:
            array = array.astype(object)
        elif array.dtype != dtype.numpy:
            array = array.view(dtype.numpy)
    array.flags.writeable = False
    return array


def _check_count(tensor: onnx.TensorProto, dtype: DType, count: int) -> None:
    field, per_element = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    stored = len(getattr(tensor, field))
    wanted = count * per_element
    if dtype.bits < 8 and dtype is not DType.STRING:
        wanted = dtype.nbytes(count)  # packed bytes, one per int32_data entry
    if stored != wanted:
        raise InputError(
            f"tensor `{tensor.name}`: {stored} entries are stored, {dtype} of {count} elements "
            f"takes {wanted}"
        )


def sparse_to_array(sparse: onnx.SparseTensorProto, limit: int = 1 << 30) -> Array:
    """Returns a sparse initializer as a dense array.

    Raises:
        InputError: When an index is out of range or the dense tensor has over `limit` elements.
    """
    values, indices = tensor_to_array(sparse.values), tensor_to_array(sparse.indices)
    name = sparse.values.name
    shape = tuple(sparse.dims)
    count = 1
    for dim in shape:
        count *= dim
    if min(shape, default=0) < 0 or count > limit:
        raise InputError(f"sparse tensor `{name}`: shape {list(shape)} is not allowed")
    flat = np.zeros(count, values.dtype)
    if indices.ndim == 2:
        if indices.shape[1] != len(shape):
            raise InputError(f"sparse tensor `{name}`: indices of rank {indices.shape[1]}")
        strides = np.cumprod([1, *reversed(shape[1:])])[::-1]
        indices = (indices * strides).sum(axis=1)
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        raise InputError(f"sparse tensor `{name}`: an index is out of range")
    flat[indices] = values
    return flat.reshape(shape)
