"""ONNX element types and TypeProto to IR types."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from regraft.ir.dims import Dim, DimLike
from regraft.ir.graph import Scope
from regraft.ir.types import (
    UNKNOWN,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)

DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: DType.F32,
    TensorProto.UINT8: DType.U8,
    TensorProto.INT8: DType.I8,
    TensorProto.UINT16: DType.U16,
    TensorProto.INT16: DType.I16,
    TensorProto.INT32: DType.I32,
    TensorProto.INT64: DType.I64,
    TensorProto.STRING: DType.STRING,
    TensorProto.BOOL: DType.BOOL,
    TensorProto.FLOAT16: DType.F16,
    TensorProto.DOUBLE: DType.F64,
    TensorProto.UINT32: DType.U32,
    TensorProto.UINT64: DType.U64,
    TensorProto.COMPLEX64: DType.C64,
    TensorProto.COMPLEX128: DType.C128,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.FLOAT8E4M3FN: DType.F8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ: DType.F8E4M3FNUZ,
    TensorProto.FLOAT8E5M2: DType.F8E5M2,
    TensorProto.FLOAT8E5M2FNUZ: DType.F8E5M2FNUZ,
    TensorProto.UINT4: DType.U4,
    TensorProto.INT4: DType.I4,
    TensorProto.FLOAT4E2M1: DType.F4E2M1,
    TensorProto.FLOAT8E8M0: DType.F8E8M0,
    TensorProto.UINT2: DType.U2,
    TensorProto.INT2: DType.I2,
}


def type_from_proto(proto: onnx.TypeProto, scope: Scope, *, name: str = "") -> Type:
    """Returns the IR type of a TypeProto; named dims become input symbols of `scope`.

    Args:
        proto: The ONNX type.
        scope: Where symbols are found or made.
        name: Name of the graph input, for axes without a size or name; "" makes them defined
            symbols.
    """
    kind = proto.WhichOneof("value")
    match kind:
        case "tensor_type" | "sparse_tensor_type":
            tensor = getattr(proto, kind)
            dtype = DTYPES.get(tensor.elem_type)
            shape = None
            if tensor.HasField("shape"):
                shape = tuple(
                    _dim(dim, scope, f"{name}_{i}" if name else "")
                    for i, dim in enumerate(tensor.shape.dim)
                )
            if kind == "sparse_tensor_type":
                return SparseTensorType(dtype, shape)
            return TensorType(dtype, shape)
        case "sequence_type":
            return SequenceType(type_from_proto(proto.sequence_type.elem_type, scope))
        case "optional_type":
            return OptionalType(type_from_proto(proto.optional_type.elem_type, scope))
        case "map_type":
            key = DTYPES.get(proto.map_type.key_type, DType.STRING)
            return MapType(key, type_from_proto(proto.map_type.value_type, scope))
        case _:
            return UNKNOWN


def _dim(dim: onnx.TensorShapeProto.Dimension, scope: Scope, fallback: str) -> DimLike:
    from regraft.frontends.onnx.importer import symbol_name  # noqa: PLC0415

    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    # names without a letter or digit stand for "unknown" (Paddle writes `?` for every such axis)
    if any(char.isalnum() for char in dim.dim_param):
        return Dim.of(scope.symbol(symbol_name(dim.dim_param)))
    if fallback:
        return Dim.of(scope.symbol(symbol_name(fallback)))
    return scope.fresh()
