"""Sizes and types of the text form; they print as `str(dim)` and `str(type)`."""

from __future__ import annotations

import re
from collections.abc import Callable

from regraft.ir.dims import Dim, DimLike, Symbol, dim_max, dim_min, exactdiv, floordiv, mod
from regraft.ir.text.lexer import Scanner
from regraft.ir.types import (
    DType,
    MapType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)

DTYPES: dict[str, DType] = {dtype.value: dtype for dtype in DType}
# A tensor type as a whole, to look up types that were read before.
_TENSOR = re.compile(r"[\w?]+\[[^\[\]\n]*\]")
SYMBOL = re.compile(r"`([^`\n]+)`|([^\W\d]\w*)")
_DIGITS = re.compile(r"\d+")
_MAX_POWER = 64
_OPS: dict[str, Callable[..., DimLike]] = {
    "min": dim_min,
    "max": dim_max,
    "exactdiv": exactdiv,
    "floordiv": floordiv,
    "mod": mod,
}


class TypeScanner:
    """Reads dims and types whose symbols come from one table.

    Args:
        symbol: Returns the symbol of a name, or None when it is unknown.
    """

    __slots__ = ("_cache", "_symbol")

    def __init__(self, symbol: Callable[[str], Symbol | None]) -> None:
        self._symbol = symbol
        self._cache: dict[str, Type] = {}

    def type(self, s: Scanner) -> Type:
        """Consumes a type.

        Raises:
            ParseError: When there is none.
        """
        match = _TENSOR.match(s.text, s.pos)
        text = match[0] if match is not None else ""
        known = self._cache.get(text)
        if known is not None:
            s.pos += len(text)
            s.skip()
            return known
        made = self._type(s)
        if text and isinstance(made, TensorType):
            self._cache[text] = made
        return made

    def _type(self, s: Scanner) -> Type:
        word = s.peek_word()
        match word:
            case "seq" | "optional":
                s.word()
                s.expect("(")
                element = self._element(s)
                s.expect(")")
                return SequenceType(element) if word == "seq" else OptionalType(element)
            case "map":
                s.word()
                s.expect("(")
                key = scan_dtype(s)
                s.expect(",")
                element = self._element(s)
                s.expect(")")
                return MapType(key, element)
            case "sparse":
                s.word()
                s.expect("(")
                dtype, shape = self._tensor(s)
                s.expect(")")
                return SparseTensorType(dtype, shape)
            case _:
                return TensorType(*self._tensor(s))

    def _element(self, s: Scanner) -> Type | None:
        if s.peek("?") and not s.peek("?["):
            s.take("?")
            return None
        return self.type(s)

    def _tensor(self, s: Scanner) -> tuple[DType | None, tuple[DimLike, ...] | None]:
        dtype = None if s.take("?") else scan_dtype(s)
        s.expect("[", "and the sizes of a tensor type")
        if s.take("*"):
            s.expect("]")
            return dtype, None
        shape: list[DimLike] = []
        while not s.take("]"):
            if shape:
                s.expect(",")
            shape.append(self.dim(s))
        return dtype, tuple(shape)

    def dim(self, s: Scanner) -> DimLike:
        """Consumes a size: a sum of products of numbers, symbols, divisions, minima and maxima.

        Raises:
            ParseError: When there is none, or a symbol is unknown.
        """
        total: DimLike = 0
        sign = -1 if s.take("-") else 1
        while True:
            total = total + sign * self._product(s)
            if s.take("+"):
                sign = 1
            elif s.take("-"):
                sign = -1
            else:
                return total

    def _product(self, s: Scanner) -> DimLike:
        result = self._power(s)
        while s.take("*"):
            result = result * self._power(s)
        return result

    def _power(self, s: Scanner) -> DimLike:
        base = self._atom(s)
        if not s.take("^"):
            return base
        start, power = s.pos, s.integer("a power")
        if not 0 < power <= _MAX_POWER:
            raise s.error(f"a power is between 1 and {_MAX_POWER}", at=start)
        result = base
        for _ in range(power - 1):
            result = result * base
        return result

    def _atom(self, s: Scanner) -> DimLike:
        number = s.match(_DIGITS)
        if number is not None:
            return int(number[0])
        if s.take("("):
            value = self.dim(s)
            s.expect(")")
            return value
        start = s.pos
        match = s.match(SYMBOL)
        if match is None:
            raise s.error(f"expected a size, found {s.found()}")
        name = match[1] or match[2]
        if name in _OPS and s.take("("):
            args = [self.dim(s)]
            while s.take(","):
                args.append(self.dim(s))
            s.expect(")")
            if name not in ("min", "max") and (len(args) != 2 or args[1] == 0):
                raise s.error(f"`{name}` takes two sizes, the second not 0", at=start)
            return _OPS[name](*args)
        symbol = self._symbol(name)
        if symbol is None:
            raise s.error(
                f"unknown symbol `{name}`",
                at=start,
                hint=f"declare it in the header: `symbol {name}`",
            )
        return Dim.of(symbol)


def scan_dtype(s: Scanner) -> DType:
    """Consumes an element type.

    Raises:
        ParseError: When there is none.
    """
    start = s.pos
    word = s.expect_word("an element type")
    dtype = DTYPES.get(word)
    if dtype is None:
        raise s.error(f"`{word}` is no element type", at=start, hint=f"one of {', '.join(DTYPES)}")
    return dtype
