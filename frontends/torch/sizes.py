"""Symbolic sizes of an export as dims of the IR: names, ranges, expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as sym
from torch.utils._sympy.numbers import int_oo

from regraft.ir.dims import (
    Dim,
    DimLike,
    Shape,
    Symbol,
    ceildiv,
    dim_max,
    dim_min,
    exactdiv,
    floordiv,
    known_equal,
    mod,
)
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Scope

_EXACT = 1 << 20
_UNBOUNDED = 1 << 40  # torch writes `sys.maxsize - 1` and int_oo for "no limit"


class Sizes:
    """Dims by symbol of the export.

    Args:
        scope: Where symbols are made.
        ranges: Ranges of the symbols.
        names: Names that the user gave.
    """

    def __init__(
        self,
        scope: Scope,
        ranges: Mapping[sympy.Symbol, Any],
        names: Mapping[sympy.Symbol, str],
    ) -> None:
        self.scope = scope
        self.ranges = ranges
        self.names = names
        self._dims: dict[sympy.Expr, DimLike] = {}
        self._expected: dict[sympy.Symbol, DimLike] = {}

    def shape(self, shape: Any) -> Shape:
        """Returns a `torch.Size` as sizes of the IR."""
        return tuple(dim if type(dim) is int else self.size(dim) for dim in shape)

    def size(self, size: int | torch.SymInt) -> DimLike:
        """Returns a size of the export as a dim of the IR."""
        if isinstance(size, int):
            return size
        return self.expression(size.node.expr)

    def knows(self, symbol: sympy.Symbol) -> bool:
        """Returns whether a symbol stands for a dim already."""
        return symbol in self._dims

    def are_equal(self, a: sympy.Expr, b: sympy.Expr) -> bool:
        """Returns whether two expressions over known symbols are one size."""
        if not all(map(self.knows, a.free_symbols | b.free_symbols)):
            return False
        return known_equal(self.expression(a), self.expression(b))

    def expect(self, symbol: sympy.Symbol) -> None:
        """Lets types speak of a symbol that the results of the next call define."""
        if symbol not in self._dims:
            self._expected[symbol] = Dim.of(Symbol(f"{symbol}?", lo=0, defined=True))

    def is_expected(self, dim: DimLike) -> bool:
        """Returns whether a dim is one that results are to define and have not."""
        return dim in self._expected.values()

    def define(self, symbol: sympy.Symbol, dim: DimLike) -> None:
        """States what a symbol of the export is in the IR."""
        self._expected.pop(symbol, None)
        self._dims[symbol] = dim

    def declare(self, symbol: sympy.Symbol, fallback: str) -> DimLike:
        """Makes the symbol of an input size under the user's name, or `fallback`."""
        if symbol in self._dims:
            return self._dims[symbol]
        name = self.names.get(symbol)
        if name is None:
            name = fallback
            while name in self.scope.symbols:
                name += "_"
        elif name in self.scope.symbols:
            # one name for two symbols: the user says that they are equal
            dim = self._dims[symbol] = Dim.of(self.scope.symbols[name])
            return dim
        lo, hi = self._range(symbol)
        dim = self._dims[symbol] = Dim.of(self.scope.symbol(name, lo=lo, hi=hi))
        return dim

    def _range(self, symbol: sympy.Symbol) -> tuple[int, int | None]:
        bounds = self.ranges.get(symbol)
        if bounds is None:
            return 1, None
        hi = None if bounds.upper == int_oo or bounds.upper > _UNBOUNDED else int(bounds.upper)
        # torch says 2 or 0 for "any": it assumes 2 while tracing, and what it guards holds for 1
        lo = int(bounds.lower) if bounds.lower > 2 else 1
        return lo, hi

    def expression(self, expr: sympy.Expr) -> DimLike:
        """Returns an expression over sizes as a dim.

        Raises:
            UnsupportedError: For a function that dims do not have.
        """
        found = self._dims.get(expr)
        if found is None and self._expected and any(s in self._expected for s in expr.free_symbols):
            return self._build(expr)
        if found is None:
            found = self._dims[expr] = self._build(expr)
        return found

    def _build(self, expr: sympy.Expr) -> DimLike:
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Symbol):
            if expr in self._expected:
                return self._expected[expr]
            raise UnsupportedError(
                f"size `{expr}` is computed from elements in a way that has no counterpart",
                hint="compute it with `.item()` of a tensor, or from sizes",
            )
        if isinstance(expr, sympy.Add):
            return reduce(lambda a, b: a + b, map(self.expression, expr.args))
        if isinstance(expr, sympy.Mul):
            return self._product(expr)
        if isinstance(expr, sympy.Pow) and isinstance(expr.exp, sympy.Integer) and expr.exp > 0:
            return reduce(lambda a, b: a * b, [self.expression(expr.base)] * int(expr.exp))
        made = _FUNCTIONS.get(expr.func)
        if made is not None:
            return made(*map(self.expression, expr.args))
        if isinstance(expr, sym.CeilToInt | sym.TruncToInt | sym.FloorToInt):
            fraction = self._fraction(expr.args[0])
            if fraction is not None:
                return (ceildiv if isinstance(expr, sym.CeilToInt) else floordiv)(*fraction)
        raise UnsupportedError(
            f"size expression `{expr}` has no counterpart",
            hint="compute the size with integer operations: +, -, *, //, %, min, max",
        )

    def _fraction(self, expr: sympy.Expr) -> tuple[DimLike, DimLike] | None:
        """Returns a float expression as numerator and denominator, where floats are exact."""
        if isinstance(expr, sym.IntTrueDiv):
            above, below = map(self.expression, expr.args)
            return above, below
        if isinstance(expr, sym.ToFloat):
            return self.expression(expr.args[0]), 1
        if isinstance(expr, sympy.Mul) and len(expr.args) == 2:
            factor, rest = expr.args
            inner = self._fraction(rest) if isinstance(factor, sympy.Float) else None
            above, below = float(factor).as_integer_ratio() if inner is not None else (0, 0)
            # 0.5 times a size is exact, 0.1 times it is rounded: ceil(0.1 * 10) is 1
            if inner is not None and isinstance(rest, sym.ToFloat) and below <= _EXACT:
                return inner[0] * above, inner[1] * below
        return None

    def _product(self, expr: sympy.Mul) -> DimLike:
        """Returns a product; a rational factor divides what the export proved to be a multiple."""
        coefficient, rest = expr.as_coeff_Mul()
        factors = [self.expression(arg) for arg in sympy.Mul.make_args(rest)]
        value: DimLike = int(coefficient.p)
        for factor in factors:
            value = factor * value
        return value if coefficient.q == 1 else exactdiv(value, int(coefficient.q))


_FUNCTIONS: dict[Any, Callable[..., DimLike]] = {
    sym.FloorDiv: floordiv,
    sym.CleanDiv: exactdiv,
    sym.Mod: mod,
    sym.PythonMod: mod,
    sym.Max: dim_max,
    sym.Min: dim_min,
    sympy.Max: dim_max,
    sympy.Min: dim_min,
}
