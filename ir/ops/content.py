"""Symbolic content of element-wise results: shape arithmetic, one size at a time.

A truth value has content 0 or 1. A float has content when it is a whole number: exporters compute
sizes through f32, which is exact for sizes below 2**24.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from regraft.ir.constants import MAX_CONTENT, constant_of
from regraft.ir.dims import (
    Dim,
    DimLike,
    Symbol,
    bounds,
    dim_max,
    dim_min,
    known_different,
    known_equal,
    substitute,
)
from regraft.ir.graph import Content, Node, Value
from regraft.ir.opspec import ContentOf
from regraft.ir.types import DType

SizeFn = Callable[..., DimLike | None]

_EXACT = {DType.F64: 1 << 53, DType.F32: 1 << 24, DType.F16: 1 << 11, DType.BF16: 1 << 8}
_SIGNED_SIZES = frozenset({DType.I64, DType.I32, DType.F64, DType.F32})
_UNSIGNED_SIZES = frozenset({DType.U64, DType.U32})


def in_dtype(value: DimLike, dtype: DType) -> DimLike | None:
    """Returns the value that `dtype` holds for a result: integers wrap; None when unknown.

    Symbolic sizes are assumed to fit 32 bits.
    """
    if isinstance(value, Dim):
        if dtype in _SIGNED_SIZES:
            return value
        lo = bounds(value)[0] if dtype in _UNSIGNED_SIZES else None
        return value if lo is not None and lo >= 0 else None
    if dtype.is_integer:
        wrapped = value & ((1 << dtype.bits) - 1)
        signed = dtype.value[0] == "i"
        return wrapped - (1 << dtype.bits) if signed and wrapped >> (dtype.bits - 1) else wrapped
    if dtype is DType.BOOL:
        return int(value != 0)
    return value if abs(value) <= _EXACT.get(dtype, -1) else None


def whole_content(value: Value) -> Content | None:
    """Returns the content of a value; float constants count when all elements are whole."""
    if value.content is not None:
        return value.content
    dtype = value.dtype
    if dtype is None or not dtype.is_float:
        return None
    array = constant_of(value, 8 * MAX_CONTENT)
    if array is None or array.ndim > 1 or array.size > MAX_CONTENT:
        return None
    items = [float(item) for item in array.reshape(-1)]
    if not all(item.is_integer() for item in items):
        return None
    return tuple(map(int, items)) if array.ndim else int(items[0])


def map_content(dtype: DType | None, fn: SizeFn, *operands: Content) -> Content | None:
    """Applies `fn` to the elements of contents that broadcast; None when an element is unknown."""
    if dtype is None:
        return None
    sizes = {len(item) for item in operands if isinstance(item, tuple)}
    if not sizes:
        result = fn(*operands)
        return None if result is None else in_dtype(result, dtype)
    num = next((size for size in sizes if size != 1), 1)
    if num > MAX_CONTENT:
        return None
    columns = [
        (item if len(item) == num else item * num) if isinstance(item, tuple) else (item,) * num
        for item in operands
    ]
    results: list[DimLike] = []
    for row in zip(*columns, strict=True):
        result = fn(*row)
        result = None if result is None else in_dtype(result, dtype)
        if result is None:
            return None
        results.append(result)
    return tuple(results)


def unary_content(fn: SizeFn) -> ContentOf:
    """Returns the content rule of an operator on one tensor."""

    def content(node: Node) -> Content | None:
        x = node.inputs[0]
        if x is None or x.content is None:
            return None
        return map_content(node.output.dtype, fn, x.content)

    return content


def binary_content(fn: SizeFn) -> ContentOf:
    """Returns the content rule of an operator on two tensors that broadcast."""

    def content(node: Node) -> Content | None:
        return pairwise(node, fn)

    return content


def pairwise(node: Node, fn: SizeFn) -> Content | None:
    """Applies `fn` to the contents of the two operands of a node."""
    a, b = node.inputs[:2]
    if a is None or b is None or (a.content is None and b.content is None):
        return None
    left, right = whole_content(a), whole_content(b)
    if left is None or right is None:
        return None
    return map_content(node.output.dtype, fn, left, right)


def with_empty_inputs(value: DimLike) -> DimLike:
    """Returns a size in which those of inputs start at 0 rather than at 1.

    An input size is taken to be at least 1, which types may rely on. A graph that asks for its
    emptiness has an answer ready, so that a truth value is decided for empty inputs too.
    """
    return substitute(value, _from_zero)


def _from_zero(symbol: Symbol) -> DimLike | None:
    is_open = symbol.lo == 1 and not symbol.defined
    return Dim.of(replace(symbol, lo=0)) if is_open else None


def at_least(value: DimLike, least: int) -> bool:
    """Returns True only when value >= least for every binding."""
    lo = value if isinstance(value, int) else bounds(value)[0]
    return lo is not None and lo >= least


def size_equal(a: DimLike, b: DimLike) -> int | None:
    """Returns 1 or 0 where a == b is decided, for empty inputs too, else None."""
    if known_equal(a, b):
        return 1
    return 0 if known_different(with_empty_inputs(a), with_empty_inputs(b)) else None


def size_less(a: DimLike, b: DimLike) -> int | None:
    """Returns 1 or 0 where a < b is decided, for empty inputs too, else None."""
    lo, hi = bounds(with_empty_inputs(b - a))
    if lo is not None and lo > 0:
        return 1
    return 0 if hi is not None and hi <= 0 else None


def size_max(*values: DimLike) -> DimLike | None:
    """Returns the largest size, None where empty inputs would decide otherwise."""
    return _extremum(dim_max, values)


def size_min(*values: DimLike) -> DimLike | None:
    """Returns the smallest size, None where empty inputs would decide otherwise."""
    return _extremum(dim_min, values)


def _extremum(choose: Callable[..., DimLike], values: Sequence[DimLike]) -> DimLike | None:
    if not values:
        return None
    chosen = choose(*values)
    if isinstance(chosen, int) and all(isinstance(value, int) for value in values):
        return chosen
    with_empty = choose(*map(with_empty_inputs, values))
    return chosen if known_equal(with_empty_inputs(chosen), with_empty) else None


def size_abs(a: DimLike) -> DimLike | None:
    """Returns |a| where the sign is decided, else None."""
    if at_least(a, 0):
        return a
    return -a if at_least(-a, 0) else None


def size_sign(a: DimLike) -> int | None:
    """Returns the sign of a where it is decided, for empty inputs too, else None."""
    if isinstance(a, int):
        return (a > 0) - (a < 0)
    a = with_empty_inputs(a)
    if at_least(a, 1):
        return 1
    return -1 if at_least(-a, 1) else None
