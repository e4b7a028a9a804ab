"""Element types and the types of values: tensors, sequences, optionals, maps."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.dims import DimLike, Shape, substitute
from regraft.ir.dims import product as dim_product


class DType(enum.Enum):
    """An element type; the value is its name in the text form."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    F8E4M3FN = "f8e4m3fn"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    I4 = "i4"
    I2 = "i2"
    U64 = "u64"
    U32 = "u32"
    U16 = "u16"
    U8 = "u8"
    U4 = "u4"
    U2 = "u2"
    BOOL = "bool"
    C64 = "c64"
    C128 = "c128"
    STRING = "string"

    # Identity hash: enum members are singletons, and the default hashes the name at each call.
    __hash__ = object.__hash__

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds one element per item (4- and 2-bit types unpacked)."""
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Bits per element in a packed file; strings count as 0."""
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        """Whether this is a real floating-point type."""
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        """Whether this is a signed or unsigned integer type (not bool)."""
        return self in _INTEGERS

    @property
    def is_complex(self) -> bool:
        """Whether this is a complex type."""
        return self is DType.C64 or self is DType.C128

    def nbytes(self, num_elements: int) -> int:
        """Returns the packed size in bytes of `num_elements` elements."""
        return (num_elements * _BITS[self] + 7) // 8

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F64: np.dtype(np.float64),
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.F8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.F4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.I64: np.dtype(np.int64),
    DType.I32: np.dtype(np.int32),
    DType.I16: np.dtype(np.int16),
    DType.I8: np.dtype(np.int8),
    DType.I4: np.dtype(ml_dtypes.int4),
    DType.I2: np.dtype(ml_dtypes.int2),
    DType.U64: np.dtype(np.uint64),
    DType.U32: np.dtype(np.uint32),
    DType.U16: np.dtype(np.uint16),
    DType.U8: np.dtype(np.uint8),
    DType.U4: np.dtype(ml_dtypes.uint4),
    DType.U2: np.dtype(ml_dtypes.uint2),
    DType.BOOL: np.dtype(np.bool_),
    DType.C64: np.dtype(np.complex64),
    DType.C128: np.dtype(np.complex128),
    DType.STRING: np.dtype(object),
}
_BITS: dict[DType, int] = {
    **{dtype: np_dtype.itemsize * 8 for dtype, np_dtype in _NUMPY.items()},
    DType.F4E2M1: 4,
    DType.I4: 4,
    DType.U4: 4,
    DType.I2: 2,
    DType.U2: 2,
    DType.STRING: 0,
}
_FLOATS = frozenset(dtype for dtype in DType if dtype.value.startswith(("f", "bf")))
_INTEGERS = frozenset(dtype for dtype in DType if dtype.value[0] in "iu")
_FROM_NUMPY: dict[np.dtype[Any], DType] = {np_dtype: dtype for dtype, np_dtype in _NUMPY.items()}


def dtype_of(array: np.ndarray[Any, Any] | np.generic | np.dtype[Any]) -> DType:
    """Returns the element type of a numpy array or dtype.

    Raises:
        KeyError: For a numpy dtype that no element type stands for.
    """
    np_dtype = array if isinstance(array, np.dtype) else array.dtype
    if np_dtype.kind in "US":
        return DType.STRING
    return _FROM_NUMPY[np_dtype]


def dtype_or_none(array: np.ndarray[Any, Any]) -> DType | None:
    """Returns the element type of an array, None for a numpy dtype that none stands for."""
    known = array.dtype.kind in "US" or array.dtype in _FROM_NUMPY
    return dtype_of(array) if known else None


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor: `dtype` and `shape` are None where unknown; an unknown axis is a defined symbol."""

    dtype: DType | None = None
    shape: Shape | None = None
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.dtype, self.shape)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def rank(self) -> int | None:
        """Number of axes, or None."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every axis is a known integer."""
        return self.shape is not None and all(type(dim) is int for dim in self.shape)

    @property
    def num_elements(self) -> DimLike | None:
        """Product of the axes, or None."""
        return None if self.shape is None else dim_product(self.shape)

    def with_shape(self, shape: Shape | None) -> TensorType:
        """Returns this type with another shape."""
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: DType | None) -> TensorType:
        """Returns this type with another element type."""
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        dtype = "?" if self.dtype is None else self.dtype.value
        if self.shape is None:
            return f"{dtype}[*]"
        return f"{dtype}[{', '.join(map(str, self.shape))}]"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class SequenceType:
    """A list of values of one type (None when unknown)."""

    element: Type | None = None

    def __str__(self) -> str:
        return f"seq({'?' if self.element is None else self.element})"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class OptionalType:
    """A value that may be absent."""

    element: Type | None = None

    def __str__(self) -> str:
        return f"optional({'?' if self.element is None else self.element})"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class MapType:
    """A mapping from keys of one element type to values of one type (ai.onnx.ml)."""

    key: DType
    value: Type | None = None

    def __str__(self) -> str:
        return f"map({self.key}, {'?' if self.value is None else self.value})"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class SparseTensorType:
    """A sparse tensor; regraft carries it through but does not compute with it."""

    dtype: DType | None = None
    shape: Shape | None = None

    def __str__(self) -> str:
        return f"sparse({TensorType(self.dtype, self.shape)})"

    __repr__ = __str__


Type = TensorType | SequenceType | OptionalType | MapType | SparseTensorType

UNKNOWN = TensorType()


def bind_type(type_: Type, values: Mapping[str, DimLike]) -> Type:
    """Returns `type_` with the named symbols replaced in every dim."""
    if isinstance(type_, TensorType):
        if type_.shape is None or type_.is_static:
            return type_
        lookup = lambda symbol: values.get(symbol.name)  # noqa: E731
        return TensorType(type_.dtype, tuple(substitute(dim, lookup) for dim in type_.shape))
    if isinstance(type_, SequenceType | OptionalType) and type_.element is not None:
        return type(type_)(bind_type(type_.element, values))
    return type_


def static_shape(type_: Type) -> tuple[int, ...] | None:
    """Returns the shape when every axis is a known integer, else None."""
    if not isinstance(type_, TensorType) or type_.shape is None or not type_.is_static:
        return None
    return type_.shape  # type: ignore[return-value]  # every dim is an int here
