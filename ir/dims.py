"""Symbolic sizes: integer polynomials over symbols, with division, remainder, minimum and maximum.

A size is `DimLike = int | Dim`. Every operation returns a plain `int` when the result is constant,
so that static shapes cost nothing. `Dim` is canonical: two dims that are equal as polynomials over
their atoms compare and hash equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from regraft.ir.dim_algebra import (
    Dim,
    DimLike,
    as_op,
    ceildiv,
    dim_max,
    dim_min,
    divisor_of,
    exact_quotient,
    exactdiv,
    floordiv,
    mod,
    substitute,
    walk_symbols,
)
from regraft.ir.dim_atoms import Atom, DimOp, Monomial, Symbol
from regraft.ir.dim_bounds import bounds

Shape = tuple[DimLike, ...]


def is_input_size(value: DimLike) -> bool:
    """Returns whether a size is at least 1 and that of an input, or the largest of several."""
    if not isinstance(value, Dim) or (bounds(value)[0] or 0) < 1:
        return False
    symbol, largest = value.as_symbol(), as_op(value, "max")
    if largest is not None:
        return all(map(is_input_size, largest.args))
    return symbol is not None and not symbol.defined


def bind(value: DimLike, values: Mapping[str, DimLike]) -> DimLike:
    """Returns `value` with the named symbols replaced; missing names stay."""
    return value if isinstance(value, int) else value.bind(values)


def known_equal(a: DimLike, b: DimLike) -> bool:
    """Returns True only when a == b for every binding."""
    if a is b:
        return True
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or (a - b) == 0


def known_different(a: DimLike, b: DimLike) -> bool:
    """Returns True only when a != b for every binding."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    lo, hi = bounds(a - b)
    return (lo is not None and lo > 0) or (hi is not None and hi < 0)


def product(shape: Iterable[DimLike]) -> DimLike:
    """Returns the number of elements of `shape`."""
    total: DimLike = 1
    for dim in shape:
        total = dim * total
    return total


def symbols_of(shape: Iterable[DimLike]) -> frozenset[Symbol]:
    """Returns every symbol in the dims of `shape`."""
    return frozenset(symbol for dim in shape for symbol in walk_symbols(dim))


__all__ = [
    "Atom",
    "Dim",
    "DimLike",
    "DimOp",
    "Monomial",
    "Shape",
    "Symbol",
    "bind",
    "bounds",
    "ceildiv",
    "dim_max",
    "dim_min",
    "divisor_of",
    "exact_quotient",
    "exactdiv",
    "floordiv",
    "is_input_size",
    "known_different",
    "known_equal",
    "mod",
    "product",
    "substitute",
    "symbols_of",
]
