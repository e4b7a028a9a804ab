"""Quantization: quantize, dequantize, dynamic_quantize, and lookup for codes that are no integers.

Scales and zero points lie per tensor (`axis` None), per position of one axis (rank 1), or per block
of `block_size` positions of one axis (rank of x).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.convert import convert
from regraft.ir.dims import mod
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, cast, gathering
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]

_SCALED = (Operand("x"), Operand("scale"), Operand("zero_point", optional=True))
INTEGER_PRODUCTS = 4
"""The `accuracy_level` of products that may be computed in 8-bit integers."""

_WHERE = (
    Attr("axis", AttrKind.INT, None),  # None: one scale for the tensor
    Attr("block_size", AttrKind.INT, 0),  # 0: not in blocks
)


def integer_range(dtype: DType) -> tuple[int, int]:
    """Returns the smallest and the largest integer of a type."""
    if dtype.value.startswith("u"):
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1


def round_saturate(x: Array, zero_point: Array | int, dtype: DType) -> Array:
    """Returns `dtype` of x rounded half to even, plus the zero point, kept in range."""
    low, high = integer_range(dtype)
    # an f64 holds every sum of a rounded f32 in range and a 32-bit zero point exactly
    shifted = np.rint(x).astype(np.float64) + np.asarray(zero_point).astype(np.float64)
    return np.clip(shifted, low, high).astype(np.int64).astype(dtype.numpy)


def compute_dtype(c: EvalContext) -> Any:
    """Returns the numpy type that quotients and products are formed in."""
    return np.float64 if c.oracle else np.float32


def spread(param: Array, x: Array, axis: int | None, block_size: int) -> Array:
    """Returns a scale or zero point in a shape that broadcasts with `x`."""
    if axis is None:
        return param.reshape(())
    axis %= x.ndim
    if block_size:
        return np.repeat(param, block_size, axis)[(slice(None),) * axis + (slice(x.shape[axis]),)]
    return param.reshape((-1, *(1,) * (x.ndim - 1 - axis)))


def _ones(value: Value | None) -> str:
    """Term of a scale or zero point that serves the whole tensor: rank 0, or axes of size 1."""
    return "." if value is None or value.rank is None else " ".join("1" * value.rank)


def _axes(node: Node) -> str | None:
    x, scale, zero_point = node.inputs[:3]
    axis = node.attrs["axis"]
    tail = "" if zero_point is None else ", {0}"
    if axis is None:
        return f"*b, {_ones(scale)}{tail.format(_ones(zero_point))} -> *b"
    if x is None or x.shape is None:
        return None
    labels = [f"a{i}" for i in range(len(x.shape))]
    axis %= len(labels)
    block = node.attrs["block_size"]
    if not block:
        return (
            f"{' '.join(labels)}, {labels[axis]}{tail.format(labels[axis])} -> {' '.join(labels)}"
        )
    whole, param = labels.copy(), labels.copy()
    if mod(x.shape[axis], block) == 0:
        whole[axis], param[axis] = "(c k!)", "c"
    else:  # the last block is shorter: positions do not factor
        whole[axis], param[axis] = "c!", "p!"
    scales = " ".join(param)
    return f"{' '.join(whole)}, {scales}{tail.format(scales)} -> {' '.join(whole)}"


def _infer_quantize(node: Node) -> TensorType:
    x, _, zero_point = node.inputs[:3]
    dtype = node.attrs["dtype"]
    if dtype is None and zero_point is not None:
        dtype = zero_point.dtype
    return TensorType(dtype, None if x is None else x.shape)


def _eval_quantize(c: EvalContext, x: Array, scale: Array, zero_point: Array | None) -> Array:
    attrs = c.attrs
    dtype = c.dtype() or DType.U8
    factor = spread(scale, x, attrs["axis"], attrs["block_size"])
    ratio = _divide(x, factor, None if c.oracle else attrs["precision"] or _dtype_of(c, 1))
    if not dtype.is_integer:
        return convert(ratio, dtype, saturate=attrs["saturate"])
    if zero_point is None:
        return round_saturate(ratio, 0, dtype)
    return round_saturate(ratio, spread(zero_point, x, attrs["axis"], attrs["block_size"]), dtype)


def _dtype_of(c: EvalContext, operand: int) -> DType | None:
    value = c.node.inputs[operand]
    return None if value is None else value.dtype


def _divide(x: Array, factor: Array, precision: DType | None) -> Array:
    """Divides in the given precision; an f32 quotient rounded to 16 bits is the 16-bit quotient."""
    wide: Any = np.float64 if x.dtype == np.float64 else np.float32
    left, right = x.astype(wide), factor.astype(wide)
    if precision is not DType.F16 and precision is not DType.BF16:
        return left / right  # type: ignore[no-any-return]  # of two arrays
    narrow = precision.numpy
    left, right = left.astype(narrow).astype(wide), right.astype(narrow).astype(wide)
    return (left / right).astype(narrow).astype(wide)  # type: ignore[no-any-return]  # an array


def _infer_dequantize(node: Node) -> TensorType:
    x, scale = node.inputs[:2]
    dtype = node.attrs["dtype"]
    if dtype is None and scale is not None:
        dtype = scale.dtype
    return TensorType(dtype, None if x is None else x.shape)


def _eval_dequantize(c: EvalContext, x: Array, scale: Array, zero_point: Array | None) -> Array:
    attrs = c.attrs
    wide = compute_dtype(c)
    centered = x
    if zero_point is not None:
        zero = spread(zero_point, x, attrs["axis"], attrs["block_size"])
        # integers below 32 bits and their differences are exact in an f32
        exact = np.int64 if x.dtype.kind in "iu" and x.dtype.itemsize >= 4 else wide
        centered = x.astype(exact) - zero.astype(exact)
    factor = spread(scale, x, attrs["axis"], attrs["block_size"]).astype(wide)
    return centered.astype(wide) * factor  # type: ignore[no-any-return]  # of two arrays


quantize = OpSpec(
    name="quantize",
    source="ONNX QuantizeLinear-25",
    operands=_SCALED,
    attrs=(
        *_WHERE,
        Attr("dtype", AttrKind.DTYPE, None),  # None: the zero point's
        Attr("precision", AttrKind.DTYPE, None),  # of the division; None: the scale's
        Attr("saturate", AttrKind.BOOL, True),  # 8-bit floats out of range become the largest
    ),
    traits=Trait.PURE | Trait.RAW | Trait.DISCRETE,
    axes=_axes,
    infer=_infer_quantize,
    eval=_eval_quantize,
)

dequantize = OpSpec(
    name="dequantize",
    source="ONNX DequantizeLinear-25",
    operands=_SCALED,
    attrs=(
        *_WHERE,
        Attr("dtype", AttrKind.DTYPE, None),  # None: the scale's
        # what kernels that multiply by the codes may make of the other operand, as MatMulNBits
        # counts: 4 rounds it to 8 bits, 0 and 1 leave it as it is
        Attr("accuracy_level", AttrKind.INT, INTEGER_PRODUCTS),
    ),
    traits=Trait.PURE | Trait.RAW,
    axes=_axes,
    infer=_infer_dequantize,
    eval=_eval_dequantize,
)


def _infer_dynamic(node: Node) -> tuple[TensorType, ...]:
    x = node.inputs[0]
    shape = None if x is None else x.shape
    return TensorType(DType.U8, shape), TensorType(DType.F32, ()), TensorType(DType.U8, ())


def _eval_dynamic(c: EvalContext, x: Array) -> tuple[Array, Array, Array]:
    wide = compute_dtype(c)
    high = np.maximum(x.max(initial=0), 0).astype(wide)
    low = np.minimum(x.min(initial=0), 0).astype(wide)
    span = high - low if high != low else wide(1)
    scale = np.asarray(span / wide(255))
    zero_point = np.asarray(np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8))
    return round_saturate(x / scale, zero_point, DType.U8), scale, zero_point


dynamic_quantize = OpSpec(
    name="dynamic_quantize",
    source="ONNX DynamicQuantizeLinear-11",
    operands=(Operand("x"),),
    results=("y", "scale", "zero_point"),
    traits=Trait.PURE | Trait.RAW | Trait.DISCRETE,
    axes="*b! -> *b!, , ",  # every element may set the range that all share
    infer=_infer_dynamic,
    eval=_eval_dynamic,
)


def _axes_lookup(node: Node) -> str | None:
    codes = node.inputs[0]
    if codes is None or codes.rank is None:
        return None
    labels = [f"a{i}" for i in range(codes.rank)]
    axis = node.attrs["axis"] % len(labels)
    whole, param = labels.copy(), labels.copy()
    whole[axis], param[axis] = "c!", "p!"
    return f"{' '.join(whole)}, t!, {' '.join(param)} -> {' '.join(whole)}"


def _infer_lookup(node: Node) -> TensorType:
    codes, table = node.inputs[:2]
    dtype = None if table is None else table.dtype
    return TensorType(dtype, None if codes is None else codes.shape)


def _eval_lookup(c: EvalContext, codes: Array, table: Array, scale: Array) -> Array:
    values = table[codes.astype(np.int64)]
    factor = spread(scale, codes, c.attrs["axis"], c.attrs["block_size"])
    return values * factor.astype(values.dtype)  # type: ignore[no-any-return]  # of two arrays


def _lookup_body(node: Node, b: Builder) -> Value:
    """Both gathers have constant operands: runtimes fold them where that is wanted."""
    codes, table, scale = operands_of(node, 3)
    axis = node.attrs["axis"]
    size = None if codes.shape is None else codes.shape[axis]
    if not isinstance(size, int):
        raise node.error("the size of the axis that blocks lie on is not known")
    block = np.arange(size) // node.attrs["block_size"]
    values = b.op(gathering.gather, table, b.op(cast.cast, codes, to=DType.I32), axis=0)
    factor = b.op(gathering.gather, scale, b.constant(block), axis=axis)
    return b.op(arithmetic.mul, values, factor)


lookup = OpSpec(
    name="lookup",
    source="the value of a code in a table times the scale of its block (NF4, FP4, FP8)",
    operands=(Operand("codes"), Operand("table"), Operand("scale")),
    attrs=(Attr("axis", AttrKind.INT), Attr("block_size", AttrKind.INT)),
    traits=Trait.PURE | Trait.RAW,
    axes=_axes_lookup,
    infer=_infer_lookup,
    eval=_eval_lookup,
    body=_lookup_body,
)

OPS: tuple[OpSpec, ...] = (quantize, dequantize, dynamic_quantize, lookup)
