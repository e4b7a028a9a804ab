"""TensorProto to numpy arrays and weights, sizes checked before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from regraft.frontends.onnx.external import ExternalData
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.errors import InputError
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Weight, unpack

Array = np.ndarray[Any, Any]

_DAMAGED = "the file is damaged or was edited; export or copy it again"

_MAX_ELEMENTS = 1 << 58

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

_ENTRIES: dict[str, type[np.generic]] = {
    "float_data": np.float32,
    "double_data": np.float64,
    "int32_data": np.int32,
    "int64_data": np.int64,
    "uint64_data": np.uint64,
}


def tensor_type(tensor: onnx.TensorProto) -> tuple[DType, tuple[int, ...]]:
    """Returns the element type and shape that a tensor declares.

    Raises:
        InputError: For an unknown element type, or a negative or impossible size.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InputError(
            f"tensor `{tensor.name}`: unknown element type {tensor.data_type}",
            hint="it may be newer than the installed `onnx`, or the file is damaged",
        )
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape):
        raise InputError(f"tensor `{tensor.name}`: negative size in {list(shape)}", hint=_DAMAGED)
    # numpy refuses such shapes even where a zero makes them empty
    if math.prod(dim or 1 for dim in shape) > _MAX_ELEMENTS:
        raise InputError(f"tensor `{tensor.name}`: impossible size {list(shape)}", hint=_DAMAGED)
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
            f"tensor `{tensor.name}`: external data where the tensor must be embedded",
            hint="only initializers may lie in other files",
        )
    count = 1
    for dim in shape:
        count *= dim
    if dtype is not DType.STRING and tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != dtype.nbytes(count):
            raise InputError(
                f"tensor `{tensor.name}`: {len(raw)} bytes are stored, {dtype}{list(shape)} "
                f"takes {dtype.nbytes(count)}",
                hint=_DAMAGED,
            )
        array = unpack(np.frombuffer(raw, np.uint8), dtype, shape)
    else:
        _check_count(tensor, dtype, count)
        array = _typed_data(tensor, dtype, shape)
    array.flags.writeable = False
    return array


def _typed_data(tensor: onnx.TensorProto, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Returns the content of the field that belongs to the element type.

    Entries that do not fit a narrow type wrap, as they do in ONNX Runtime.
    """
    if dtype is DType.STRING:
        # bytes that are no UTF-8 survive a round trip as surrogates
        texts = [item.decode("utf-8", "surrogateescape") for item in tensor.string_data]
        return np.array(texts, object).reshape(shape)
    field, _ = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    entries = np.array(getattr(tensor, field), _ENTRIES[field])
    if field in ("float_data", "double_data", "int64_data"):
        return entries.view(dtype.numpy).reshape(shape)
    if field == "uint64_data":
        return entries.astype(dtype.numpy).reshape(shape)
    if dtype is DType.BOOL:
        flags: Array = (entries != 0).reshape(shape)
        return flags
    if dtype.bits < 8:
        return unpack(entries.astype(np.uint8), dtype, shape)
    stored = {8: np.uint8, 16: np.uint16, 32: np.int32}[dtype.bits]
    return entries.astype(stored).view(dtype.numpy).reshape(shape)


def _check_count(tensor: onnx.TensorProto, dtype: DType, count: int) -> None:
    field, per_element = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    stored = len(getattr(tensor, field))
    wanted = count * per_element
    if dtype.bits < 8 and dtype is not DType.STRING:
        wanted = dtype.nbytes(count)  # packed bytes, one per int32_data entry
    if stored != wanted:
        raise InputError(
            f"tensor `{tensor.name}`: {stored} entries are stored, {dtype} of {count} elements "
            f"takes {wanted}",
            hint=_DAMAGED,
        )


def sparse_to_array(sparse: onnx.SparseTensorProto, limit: int = 1 << 28) -> Array:
    """Returns a sparse initializer as a dense array.

    Raises:
        InputError: When values and indices do not belong together, an index is out of range, or
            the dense tensor has over `limit` elements.
    """
    values, indices = tensor_to_array(sparse.values), tensor_to_array(sparse.indices)
    name = sparse.values.name
    shape = tuple(sparse.dims)
    count = 1
    for dim in shape:
        count *= dim
    if min(shape, default=0) < 0 or count > limit:
        raise InputError(
            f"sparse tensor `{name}`: shape {list(shape)} is not allowed",
            hint=f"sizes are not negative, and at most {limit} elements in all",
        )
    flat = np.zeros(count, values.dtype)
    if indices.ndim == 2:
        if indices.shape[1] != len(shape):
            raise InputError(
                f"sparse tensor `{name}`: {indices.shape[1]} indices per value, the shape "
                f"{list(shape)} takes {len(shape)}",
                hint=_DAMAGED,
            )
        if (indices < 0).any() or (indices >= np.array(shape)).any():
            raise InputError(f"sparse tensor `{name}`: an index is out of range", hint=_DAMAGED)
        strides = np.cumprod([1, *reversed(shape[1:])])[::-1]
        indices = (indices * strides).sum(axis=1)
    if indices.shape != values.shape or indices.dtype != np.int64:
        raise InputError(
            f"sparse tensor `{name}`: {values.size} values, {indices.size} indices of type "
            f"{indices.dtype}",
            hint=_DAMAGED,
        )
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        raise InputError(f"sparse tensor `{name}`: an index is out of range", hint=_DAMAGED)
    flat[indices] = values
    return flat.reshape(shape)
