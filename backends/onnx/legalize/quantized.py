"""Quantized products for ONNX Runtime: the kernel that takes the codes, never dequantized weights.

A product of dequantized operands that no kernel takes dequantizes its weight on every run, which
is slower than the float model.
"""

from __future__ import annotations

import numpy as np

from regraft.backends.onnx import ort_quant_ops
from regraft.backends.onnx.packed_codes import SIGNED, nbits_codes
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, weight_of
from regraft.ir.graph import Node, Value
from regraft.ir.matrix_rows import rows_of
from regraft.ir.ops import arithmetic, linalg, quant
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.spill import stored
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Weight

_ANY_SIZE = 1 << 62
_MIN_BLOCK = 16


def _dequantized(value: Value | None) -> Node | None:
    maker = None if value is None else value.producer
    return maker if maker is not None and maker.op is quant.dequantize else None


def _rank0(value: Value | None) -> bool:
    return value is not None and value.shape is not None and value.shape in ((), (1,))


def integer_to_float(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes u8 rows by an i8 matrix with a scale per output, the bias included."""
    left, right = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    if left is None or right is None:
        return False
    codes, scale, zero = left.inputs[:3]
    weight, weight_scale, weight_zero = right.inputs[:3]
    if codes is None or codes.dtype is not DType.U8 or left.attrs["axis"] is not None:
        return Reject("the left operand is no u8 tensor with one scale")
    if not _rank0(scale) or zero is None or not _rank0(zero):
        return Reject("the left operand has no single scale and zero point")
    if weight is None or weight.dtype not in (DType.I8, DType.U8) or weight.rank != 2:
        return Reject("the right operand is no matrix of 8-bit integers")
    if not is_constant(weight) or right.attrs["block_size"]:
        return Reject("the right operand is no constant with a scale per output")
    if right.attrs["axis"] not in (None, 1, -1):
        return Reject("the right operand's scales lie along the sum")
    if weight_zero is not None and not is_constant(weight_zero):
        return Reject("the right operand's zero points are not constant")
    bias, last = _bias(node)
    b = rw.builder(last)
    if weight.dtype is DType.U8:
        weight, weight_zero = _signed(b, weight, weight_zero)
    result = b.op(
        ort_quant_ops.matmul_integer_to_float,
        codes, weight, scale, weight_scale, zero, weight_zero, bias,
    )  # fmt: skip
    rw.replace(last, result)
    return True


def _signed(b: Builder, codes: Value, zero: Value | None) -> tuple[Value, Value]:
    """Returns u8 codes and zero points less 128: products of u8 by u8 have no fast kernel."""
    array, points = constant_of(codes, _ANY_SIZE), constant_of(zero, _ANY_SIZE)
    if array is None:
        raise AssertionError("the codes are constant")
    points = np.zeros((), np.uint8) if points is None else points
    moved, middle = ((x.astype(np.int16) - 128).astype(np.int8) for x in (array, points))
    return b.constant(moved, name=codes.name), b.constant(middle)


def _bias(node: Node) -> tuple[Value | None, Node]:
    """Returns the constant vector that is added to a product, and the last node of both."""
    users = node.output.users
    if node.output.num_uses != 1 or not users or users[0].op is not arithmetic.add:
        return None, node
    total = users[0]
    other = total.inputs[1] if total.inputs[0] is node.output else total.inputs[0]
    if other is None or other.rank != 1 or not is_constant(other):
        return None, node
    shape = node.output.shape
    if shape is None or other.shape != shape[-1:] or other.dtype is not DType.F32:
        return None, node
    return other, total


def nbits(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes float rows by a matrix of 2, 4 or 8 bits in blocks along the sum."""
    x, right = node.inputs[0], _dequantized(node.inputs[1])
    if x is None or right is None or _dequantized(x) is not None:
        return False
    group = right.attrs["block_size"]
    held, codes, scale = right.inputs[0], weight_of(right.inputs[0]), weight_of(right.inputs[1])
    if x.dtype is not DType.F32 or codes is None or scale is None or len(codes.shape) != 2:
        return Reject("it is no f32 product with a constant matrix")
    if right.attrs["axis"] not in (0, -2) or group < _MIN_BLOCK or group & (group - 1):
        return Reject("the matrix is not in blocks of a power of two along the sum")
    zero = constant_of(right.inputs[2], _ANY_SIZE)
    if zero is None and right.inputs[2] is not None:
        return Reject("the zero points are not constant")
    bits = codes.dtype.bits
    if not codes.dtype.is_integer or bits not in (2, 4, 8):
        return Reject(f"there is no kernel for codes of {codes.dtype}")
    b = rw.builder(node)
    k, n = codes.shape
    place = None if held is None else held.producer
    name = "codes" if place is None else str(place.attrs.get("name", "codes"))
    points = None  # the middle of the range is what the kernel takes where there are none
    if zero is not None or codes.dtype not in SIGNED:
        packed = ort_quant_ops.nbits_zero_points(zero, (-(-k // group), n), bits)
        points = _constant(b, f"{name}.zero_points", stored(packed))
    result = b.op(
        ort_quant_ops.matmul_nbits, x, b.weight(f"{name}.packed", nbits_codes(codes, group)),
        _constant(b, f"{name}.scales", _transposed(scale)), points,
        k=k, n=n, bits=bits, block_size=group, accuracy_level=right.attrs["accuracy_level"],
    )  # fmt: skip
    rw.replace(node, result)
    return True


def _constant(b: Builder, name: str, weight: Weight) -> Value:
    """Returns a weight as a value, inline where it is small."""
    if isinstance(weight, ArrayWeight):
        return b.constant(weight.array)
    return b.weight(name, weight)


def _transposed(matrix: Weight) -> Weight:
    """Returns the transpose, as it lies in a file where it does."""
    rows = rows_of(matrix)
    return rows.weight if rows.transposed else stored(np.ascontiguousarray(matrix.numpy().T))


RULES: tuple[LocalRule, ...] = (
    LocalRule("legalize-matmul-integer-to-float", (linalg.matmul,), integer_to_float),
    LocalRule("legalize-matmul-nbits", (linalg.matmul,), nbits),
)
"""Rules without a choice: every one of these forms is faster than what it replaces."""
