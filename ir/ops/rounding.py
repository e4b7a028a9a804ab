"""Rounding: floor, ceil, round, and sizes that exporters divide in floats."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import DimLike, ceildiv, floordiv
from regraft.ir.graph import Content, Node, Value
from regraft.ir.ops import arithmetic
from regraft.ir.ops.content import SizeFn, at_least, map_content, whole_content
from regraft.ir.ops.pointwise import unary
from regraft.ir.opspec import ContentOf, OpSpec, Trait
from regraft.ir.types import DType

# Rounding a float quotient of whole numbers equals rounding the exact one while the numerator is
# exact (below 2**24 in f32): the distance to the next whole number is at least 1 / denominator.
_FLOATS = frozenset({DType.F32, DType.F64})
_MAX_DENOMINATOR = 1 << 10


def float_quotient(value: Value) -> tuple[Content, Content] | None:
    """Returns (numerator, denominator) of a float that is a quotient of sizes, or None.

    Seen are `div` of two whole contents and `mul` of one with a dyadic constant (0.5, 1.25).
    """
    node = value.producer
    if node is None or value.dtype not in _FLOATS:
        return None
    a, b = (node.inputs[0], node.inputs[1]) if len(node.inputs) == 2 else (None, None)
    if a is None or b is None:
        return None
    if node.op is arithmetic.div:
        numerator, denominator = whole_content(a), whole_content(b)
        return None if numerator is None or denominator is None else (numerator, denominator)
    if node.op is not arithmetic.mul:
        return None
    size, factor = (a, b) if a.content is not None else (b, a)
    array = constant_of(factor, 8)
    if size.content is None or array is None or array.size != 1 or array.ndim > 1:
        return None
    if not np.isfinite(array).all():
        return None
    ratio = Fraction(float(array.reshape(())))
    if ratio.denominator > _MAX_DENOMINATOR:
        return None
    one = DType.F64  # wide enough for the exact numerator
    scaled = map_content(one, lambda x: x * ratio.numerator, size.content)
    return None if scaled is None else (scaled, ratio.denominator)


def rounded_content(round_quotient: SizeFn) -> ContentOf:
    """Returns the content rule of a rounding: whole numbers stay, quotients of sizes round.

    Args:
        round_quotient: (numerator, denominator) -> size or None.
    """

    def content(node: Node) -> Content | None:
        x = node.inputs[0]
        dtype = node.output.dtype
        if x is None or dtype is None:
            return None
        if x.content is not None:
            return map_content(dtype, lambda item: item, x.content)
        parts = float_quotient(x)
        return None if parts is None else map_content(dtype, round_quotient, *parts)

    return content


def floor_size(a: DimLike, b: DimLike) -> DimLike | None:
    """Returns floor(a / b) for a divisor known to be positive, else None."""
    return floordiv(a, b) if at_least(b, 1) else None


def ceil_size(a: DimLike, b: DimLike) -> DimLike | None:
    """Returns ceil(a / b) for a divisor known to be positive, else None."""
    return ceildiv(a, b) if at_least(b, 1) else None


def truncate_size(a: DimLike, b: DimLike) -> DimLike | None:
    """Returns a / b rounded toward zero for operands known to be non-negative, else None."""
    return floor_size(a, b) if at_least(a, 0) else None


def _unknown(a: DimLike, b: DimLike) -> None:
    """Rounds no quotient: ties go to even, which no size expression says."""


floor = unary(
    "floor", "ONNX Floor-13", np.floor, traits=Trait.DISCRETE, content=rounded_content(floor_size)
)
ceil = unary(
    "ceil", "ONNX Ceil-13", np.ceil, traits=Trait.DISCRETE, content=rounded_content(ceil_size)
)
# halves go to the even neighbour
round_ = unary(
    "round", "ONNX Round-22", np.rint, traits=Trait.DISCRETE, content=rounded_content(_unknown)
)

OPS: tuple[OpSpec, ...] = (floor, ceil, round_)
