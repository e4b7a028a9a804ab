"""ONNX element types and TypeProto to IR types."""

from __future__ import annotations

import re

import onnx
from onnx import TensorProto

from regraft.ir.dims import Dim, DimLike, Symbol
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


class Sizes:
    """Symbols of ONNX dim parameters, which may be any text: different texts, different symbols.

    Args:
        scope: Where symbols are made.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.by_text: dict[str, Symbol] = {}

    def named(self, text: str) -> Dim:
        """Returns the size that a dim parameter names."""
        found = self.by_text.get(text)
        if found is None:
            # "a b" and "a_b" are two sizes, and "u0" may be the name of a defined symbol
            wanted = identifier(text)
            name, number = wanted, 0
            while name in self.scope.symbols:
                number += 1
                name = f"{wanted}_{number}"
            found = self.by_text[text] = self.scope.symbol(name)
        return Dim.of(found)

    def unnamed(self, value: str, axis: int) -> Dim:
        """Returns the size of an axis of a graph input that has neither a number nor a name."""
        return self.named(f"{value}_{axis}")

    def fresh(self) -> Dim:
        """Returns a new defined size."""
        return self.scope.fresh()


def identifier(text: str) -> str:
    """Returns an identifier that looks like the text."""
    name = _NOT_IDENTIFIER.sub("_", text)
    return f"_{name}" if not name or name[0].isdigit() else name


_NOT_IDENTIFIER = re.compile(r"\W")


def type_from_proto(proto: onnx.TypeProto, sizes: Sizes, *, name: str = "") -> Type:
    """Returns the IR type of a TypeProto; named dims become input symbols.

    Args:
        proto: The ONNX type.
        sizes: Where symbols are found or made.
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
                shape = tuple(_dim(dim, sizes, name, i) for i, dim in enumerate(tensor.shape.dim))
            if kind == "sparse_tensor_type":
                return SparseTensorType(dtype, shape)
            return TensorType(dtype, shape)
        case "sequence_type":
            return SequenceType(type_from_proto(proto.sequence_type.elem_type, sizes))
        case "optional_type":
            return OptionalType(type_from_proto(proto.optional_type.elem_type, sizes))
        case "map_type":
            key = DTYPES.get(proto.map_type.key_type, DType.STRING)
            return MapType(key, type_from_proto(proto.map_type.value_type, sizes))
        case _:
            return UNKNOWN


def _dim(dim: onnx.TensorShapeProto.Dimension, sizes: Sizes, name: str, axis: int) -> DimLike:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    # names without a letter or digit stand for "unknown" (Paddle writes `?` for every such axis)
    text: object = dim.dim_param  # bytes where the file has no valid text
    if isinstance(text, str) and any(char.isalnum() for char in text):
        return sizes.named(dim.dim_param)
    return sizes.unnamed(name, axis) if name else sizes.fresh()
