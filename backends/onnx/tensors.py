"""Numpy arrays and IR types to ONNX protos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from regraft.ir.dims import Shape
from regraft.ir.types import (
    DType,
    MapType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
    dtype_of,
)
from regraft.ir.weights import pack

ONNX_DTYPES: dict[DType, int] = {
    DType.F32: TensorProto.FLOAT,
    DType.U8: TensorProto.UINT8,
    DType.I8: TensorProto.INT8,
    DType.U16: TensorProto.UINT16,
    DType.I16: TensorProto.INT16,
    DType.I32: TensorProto.INT32,
    DType.I64: TensorProto.INT64,
    DType.STRING: TensorProto.STRING,
    DType.BOOL: TensorProto.BOOL,
    DType.F16: TensorProto.FLOAT16,
    DType.F64: TensorProto.DOUBLE,
    DType.U32: TensorProto.UINT32,
    DType.U64: TensorProto.UINT64,
    DType.C64: TensorProto.COMPLEX64,
    DType.C128: TensorProto.COMPLEX128,
    DType.BF16: TensorProto.BFLOAT16,
    DType.F8E4M3FN: TensorProto.FLOAT8E4M3FN,
    DType.F8E4M3FNUZ: TensorProto.FLOAT8E4M3FNUZ,
    DType.F8E5M2: TensorProto.FLOAT8E5M2,
    DType.F8E5M2FNUZ: TensorProto.FLOAT8E5M2FNUZ,
    DType.U4: TensorProto.UINT4,
    DType.I4: TensorProto.INT4,
    DType.F4E2M1: TensorProto.FLOAT4E2M1,
    DType.F8E8M0: TensorProto.FLOAT8E8M0,
    DType.U2: TensorProto.UINT2,
    DType.I2: TensorProto.INT2,
}


def array_to_tensor(array: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    """Returns a TensorProto with the array's content as raw data (strings excepted)."""
    dtype = dtype_of(array) if array.dtype != object else DType.STRING
    tensor = onnx.TensorProto(data_type=ONNX_DTYPES[dtype], dims=array.shape, name=name)
    if dtype is DType.STRING:
        tensor.string_data.extend(
            item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogateescape")
            for item in array.reshape(-1)
        )
    else:
        tensor.raw_data = pack(array, dtype)
    return tensor


def type_to_proto(type_: Type, dim_names: Mapping[str, str] | None = None) -> onnx.TypeProto:
    """Returns the TypeProto of an IR type; symbolic dims become dim parameters.

    Args:
        type_: The type.
        dim_names: Original dim parameters of symbols that had to be renamed.
    """
    match type_:
        case TensorType(dtype, shape):
            return helper.make_tensor_type_proto(_elem(dtype), _dims(shape, dim_names))
        case SparseTensorType(dtype, shape):
            return helper.make_sparse_tensor_type_proto(_elem(dtype), _dims(shape, dim_names))
        case SequenceType(element):
            return helper.make_sequence_type_proto(_inner(element))
        case OptionalType(element):
            return helper.make_optional_type_proto(_inner(element))
        case MapType(key, value):
            return helper.make_map_type_proto(ONNX_DTYPES[key], _inner(value))


def _elem(dtype: DType | None) -> int:
    return TensorProto.UNDEFINED if dtype is None else ONNX_DTYPES[dtype]


def _inner(type_: Type | None) -> onnx.TypeProto:
    return onnx.TypeProto() if type_ is None else type_to_proto(type_)


def _dims(shape: Shape | None, dim_names: Mapping[str, str] | None) -> list[int | str] | None:
    if shape is None:
        return None
    names = dim_names or {}
    return [dim if isinstance(dim, int) else names.get(str(dim), str(dim)) for dim in shape]
