"""Symbolic sizes: integer polynomials over symbols, with division, remainder, minimum and maximum.

A size is `DimLike = int | Dim`. Every operation returns a plain `int` when the result is constant,
so that static shapes cost nothing. `Dim` is canonical: two dims that are equal as polynomials over
their atoms compare and hash equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import gcd


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size known only at run time.

    Args:
        name: Unique within a module.
        lo: Smallest value it takes (a past length has 0).
        hi: Largest value it takes, or None.
        multiple_of: A number that divides every value it takes.
        defined: True when a node's result defines it (data-dependent), False for an input size.
    """

    name: str
    lo: int = 1
    hi: int | None = None
    multiple_of: int = 1
    defined: bool = False

    @property
    def key(self) -> str:
        """Sort key of the symbol among atoms."""
        return self.name

    def __str__(self) -> str:
        return self.name if self.name.isidentifier() else f"`{self.name}`"


class DimOp:
    """An opaque integer operation on dims: `exactdiv`, `floordiv`, `mod`, `min` or `max`."""

    __slots__ = ("_hash", "args", "key", "kind")

    def __init__(self, kind: str, args: tuple[DimLike, ...]) -> None:
        self.kind = kind
        self.args = args
        self.key = _format_op(kind, args)
        self._hash = hash((kind, args))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, DimOp) and self.kind == other.kind and self.args == other.args

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.key

    __repr__ = __str__


Atom = Symbol | DimOp
Monomial = tuple[tuple[Atom, int], ...]  # ((atom, power), ...), sorted by key; () is the constant


class Dim:
    """A size that is not a constant: a sum of integer multiples of products of atoms."""

    __slots__ = ("_hash", "_str", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        """Builds from canonical terms; use `Dim.of` and the operators instead."""
        self.terms = terms
        self._hash = hash(terms)
        self._str: str | None = None

    @staticmethod
    def of(symbol: Symbol | str) -> Dim:
        """Returns the dim that is just `symbol`."""
        symbol = Symbol(symbol) if isinstance(symbol, str) else symbol
        return Dim(((((symbol, 1),), 1),))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: DimLike) -> DimLike:
        return _from_terms([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> DimLike:
        return _from_terms([(mono, -coef) for mono, coef in self.terms])

    def __sub__(self, other: DimLike) -> DimLike:
        return _from_terms([*self.terms, *((mono, -coef) for mono, coef in _terms(other))])

    def __rsub__(self, other: DimLike) -> DimLike:
        return -self + other

    def __mul__(self, other: DimLike) -> DimLike:
        if other == 1:
            return self
        return _from_terms(
            [(_mul_mono(m1, m2), c1 * c2) for m1, c1 in self.terms for m2, c2 in _terms(other)]
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floordiv(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        return mod(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        return mod(other, self)

    def symbols(self) -> frozenset[Symbol]:
        """Returns every symbol that the dim depends on."""
        return frozenset(_walk_symbols(self))

    def bind(self, values: Mapping[str, DimLike]) -> DimLike:
        """Returns the dim with symbols replaced by name; missing names stay."""
        return substitute(self, lambda symbol: values.get(symbol.name))

    def as_symbol(self) -> Symbol | None:
        """Returns the symbol when the dim is exactly one symbol, else None."""
        if len(self.terms) == 1:
            mono, coef = self.terms[0]
            if coef == 1 and len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], Symbol):
                return mono[0][0]
        return None

    def __str__(self) -> str:
        if self._str is None:
            self._str = _format(self)
        return self._str

    def __repr__(self) -> str:
        return f"Dim({self})"

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of symbolic dim `{self}` is not known before run time")


DimLike = int | Dim
Shape = tuple[DimLike, ...]


def _terms(value: DimLike) -> Iterable[tuple[Monomial, int]]:
    if isinstance(value, Dim):
        return value.terms
    return (((), int(value)),) if value else ()


def _mono_key(mono: Monomial) -> tuple[int, str]:
    return (
        -sum(power for _, power in mono),
        "*".join(f"{atom.key}^{power}" for atom, power in mono),
    )


def _mul_mono(a: Monomial, b: Monomial) -> Monomial:
    if not a:
        return b
    if not b:
        return a
    powers: dict[Atom, int] = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: item[0].key))


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    total: dict[Monomial, int] = {}
    for mono, coef in terms:
        total[mono] = total.get(mono, 0) + coef
    total = {mono: coef for mono, coef in total.items() if coef}
    if not total:
        return 0
    if len(total) == 1 and () in total:
        return total[()]
    for mono, coef in total.items():
        for atom, power in mono:
            # exactdiv(a, n) * (k * n) -> a * k, so that splitting and merging an axis cancels
            if isinstance(atom, DimOp) and atom.kind == "exactdiv":
                numerator, divisor = atom.args
                rest: Monomial = tuple(
                    (a, p - 1 if a is atom else p) for a, p in mono if a is not atom or p > 1
                )
                others = [item for item in total.items() if item[0] != mono]
                if isinstance(divisor, int) and coef % divisor == 0:
                    whole = Dim(((rest, coef // divisor),)) if rest else coef // divisor
                    return _from_terms([*others, *_terms(whole * numerator)])
                if isinstance(divisor, Dim) and len(divisor.terms) == 1:
                    factor = _div_term((rest, coef), divisor.terms[0])
                    if factor is not None:
                        whole = Dim((factor,)) if factor[0] else factor[1]
                        return _from_terms([*others, *_terms(whole * numerator)])
            del power
    return Dim(tuple(sorted(total.items(), key=lambda item: _mono_key(item[0]))))


def _div_term(a: tuple[Monomial, int], b: tuple[Monomial, int]) -> tuple[Monomial, int] | None:
    """Returns the term a / b when it is a term, else None."""
    if a[1] % b[1]:
        return None
    powers = dict(a[0])
    for atom, power in b[0]:
        left = powers.get(atom, 0) - power
        if left < 0:
            return None
        if left:
            powers[atom] = left
        else:
            del powers[atom]
    return tuple(sorted(powers.items(), key=lambda item: item[0].key)), a[1] // b[1]


def exact_quotient(a: DimLike, b: DimLike) -> DimLike | None:
    """Returns the polynomial q with a == q * b, or None."""
    if isinstance(b, int):
        if b == 0:
            return None
        terms = list(_terms(a))
        if any(coef % b for _, coef in terms):
            return None
        return _from_terms([(mono, coef // b) for mono, coef in terms])
    quotient: DimLike = 0
    rest = a
    for _ in range(16):
        if isinstance(rest, int):
            return quotient if rest == 0 else None
        factor = _div_term(rest.terms[0], b.terms[0])
        if factor is None:
            return None
        step: DimLike = Dim((factor,)) if factor[0] else factor[1]
        quotient = quotient + step
        rest = rest - step * b
    return None


def divisor_of(value: DimLike) -> int:
    """Returns a number that divides `value` for every binding (0 for the constant 0)."""
    if isinstance(value, int):
        return abs(value)
    return reduce(gcd, (abs(coef) * _mono_divisor(mono) for mono, coef in value.terms))


def _mono_divisor(mono: Monomial) -> int:
    result = 1
    for atom, power in mono:
        if isinstance(atom, Symbol):
            result *= atom.multiple_of**power
    return result


def exactdiv(a: DimLike, b: DimLike) -> DimLike:
    """Returns a / b where the caller knows that b divides a."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    quotient = exact_quotient(a, b)
    return quotient if quotient is not None else _op("exactdiv", a, b)


def floordiv(a: DimLike, b: DimLike) -> DimLike:
    """Returns floor(a / b)."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    quotient = exact_quotient(a, b)
    if quotient is not None:
        return quotient
    if isinstance(b, int) and isinstance(a, Dim):
        if divisor_of(a) % b == 0:
            return exactdiv(a, b)
        nested = _nested_floor(a, b)
        if nested is not None:
            return nested
        # floor((q * b + r) / b) == q + floor(r / b)
        whole = [(mono, coef // b) for mono, coef in a.terms if coef % b == 0]
        rest = _from_terms([(mono, coef) for mono, coef in a.terms if coef % b])
        constant = sum(coef for mono, coef in a.terms if not mono and coef % b)
        if constant >= b or constant < 0:
            whole.append(((), constant // b))
            rest = rest - (constant // b) * b
        lo, hi = bounds(rest)
        if lo is not None and hi is not None and lo // b == hi // b:
            return _from_terms(whole) + lo // b
        if whole:
            nested = _nested_floor(rest, b)
            return _from_terms(whole) + (_op("floordiv", rest, b) if nested is None else nested)
    return _op("floordiv", a, b)


def _nested_floor(a: DimLike, b: int) -> DimLike | None:
    """Returns floor(floor(x / m) / b) as floor(x / (m * b)), None when `a` is no such division."""
    inner = _as_op(a, "floordiv")
    if b <= 0 or inner is None:
        return None
    x, m = inner.args
    return floordiv(x, m * b) if isinstance(m, int) and m > 0 else None


def ceildiv(a: DimLike, b: DimLike) -> DimLike:
    """Returns ceil(a / b) for positive b."""
    if isinstance(b, int) and isinstance(a, int):
        return -(-a // b)
    return floordiv(a + b - 1, b)


def mod(a: DimLike, b: DimLike) -> DimLike:
    """Returns a - b * floor(a / b)."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int) and isinstance(a, Dim):
        if divisor_of(a) % b == 0:
            return 0
        a = _from_terms([(mono, coef % b) for mono, coef in a.terms])
        if isinstance(a, int):
            return a % b
        lo, hi = bounds(a)
        if lo is not None and hi is not None and lo >= 0 and hi < b:
            return a
    elif exact_quotient(a, b) is not None:
        return 0
    return _op("mod", a, b)


def dim_min(*values: DimLike) -> DimLike:
    """Returns the smallest value, decided where bounds allow."""
    return _extremum("min", values)


def dim_max(*values: DimLike) -> DimLike:
    """Returns the largest value, decided where bounds allow."""
    return _extremum("max", values)


def _extremum(kind: str, values: tuple[DimLike, ...]) -> DimLike:
    flat: list[DimLike] = []
    for value in values:
        inner = _as_op(value, kind)
        flat.extend(inner.args if inner else (value,))
    kept: list[DimLike] = []
    for value in flat:
        if any(_dominates(kind, other, value) for other in kept):
            continue
        kept = [other for other in kept if not _dominates(kind, value, other)]
        kept.append(value)
    return kept[0] if len(kept) == 1 else _op(kind, *sorted(kept, key=str))


def is_input_size(value: DimLike) -> bool:
    """Returns whether a size is at least 1 and that of an input, or the largest of several."""
    if not isinstance(value, Dim) or (bounds(value)[0] or 0) < 1:
        return False
    symbol, largest = value.as_symbol(), _as_op(value, "max")
    if largest is not None:
        return all(map(is_input_size, largest.args))
    return symbol is not None and not symbol.defined


def _dominates(kind: str, a: DimLike, b: DimLike) -> bool:
    """Returns whether `a` makes `b` redundant under `kind`."""
    lo, hi = bounds(a - b)
    return (lo is not None and lo >= 0) if kind == "max" else (hi is not None and hi <= 0)


def _as_op(value: DimLike, kind: str) -> DimOp | None:
    if isinstance(value, Dim) and len(value.terms) == 1:
        mono, coef = value.terms[0]
        if coef == 1 and len(mono) == 1 and mono[0][1] == 1:
            atom = mono[0][0]
            if isinstance(atom, DimOp) and atom.kind == kind:
                return atom
    return None


def _op(kind: str, *args: DimLike) -> Dim:
    return Dim(((((DimOp(kind, args), 1),), 1),))


_EVALUATE: dict[str, Callable[..., DimLike]] = {
    "exactdiv": exactdiv,
    "floordiv": floordiv,
    "mod": mod,
    "min": dim_min,
    "max": dim_max,
}


def substitute(value: DimLike, lookup: Callable[[Symbol], DimLike | None]) -> DimLike:
    """Returns `value` with every symbol for which `lookup` answers replaced by the answer."""
    if isinstance(value, int):
        return value
    total: DimLike = 0
    for mono, coef in value.terms:
        product: DimLike = coef
        for atom, power in mono:
            if isinstance(atom, Symbol):
                found = lookup(atom)
                factor = Dim.of(atom) if found is None else found
            else:
                factor = _EVALUATE[atom.kind](*(substitute(arg, lookup) for arg in atom.args))
            for _ in range(power):
                product = factor * product
        total = product + total
    return total


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


def bounds(value: DimLike) -> tuple[int | None, int | None]:
    """Returns (smallest, largest) values over all bindings; None where unbounded or unknown."""
    if isinstance(value, int):
        return value, value
    lo: int | None = 0
    hi: int | None = 0
    for mono, coef in value.terms:
        mlo: int | None = 1
        mhi: int | None = 1
        for atom, power in mono:
            alo, ahi = (atom.lo, atom.hi) if isinstance(atom, Symbol) else _op_bounds(atom)
            if alo is None or alo < 0 or mlo is None or mlo < 0:
                mlo, mhi = (alo, ahi) if len(mono) == 1 and power == 1 else (None, None)
                continue
            mlo = mlo * alo**power
            mhi = None if mhi is None or ahi is None else mhi * ahi**power
        tlo, thi = (mlo, mhi) if coef > 0 else (mhi, mlo)
        lo = None if lo is None or tlo is None else lo + coef * tlo
        hi = None if hi is None or thi is None else hi + coef * thi
    return lo, hi


def _op_bounds(op: DimOp) -> tuple[int | None, int | None]:
    (alo, ahi), (blo, bhi) = bounds(op.args[0]), bounds(op.args[1])
    if op.kind in ("min", "max"):
        pairs = [bounds(arg) for arg in op.args]
        los = [lo for lo, _ in pairs if lo is not None]
        his = [hi for _, hi in pairs if hi is not None]
        if op.kind == "max":
            return max(los, default=None), max(his) if len(his) == len(pairs) else None
        return min(los) if len(los) == len(pairs) else None, min(his, default=None)
    if op.kind == "mod":
        return (
            (0, None if bhi is None else bhi - 1) if blo is not None and blo > 0 else (None, None)
        )
    if blo is None or blo <= 0 or alo is None or alo < 0:
        if blo is not None and blo == bhi and blo > 0:  # a constant divisor keeps the order
            return (
                None if alo is None else alo // blo,
                None if ahi is None else ahi // blo,
            )
        return None, None
    if op.kind == "exactdiv":  # what divides without rest is no smaller than the next whole number
        return (-(-alo // bhi) if bhi else min(alo, 1)), (None if ahi is None else ahi // blo)
    return (alo // bhi if bhi else 0), (None if ahi is None else ahi // blo)


def _walk_symbols(value: DimLike) -> Iterable[Symbol]:
    if isinstance(value, Dim):
        for mono, _ in value.terms:
            for atom, _ in mono:
                if isinstance(atom, Symbol):
                    yield atom
                else:
                    for arg in atom.args:
                        yield from _walk_symbols(arg)


def product(shape: Iterable[DimLike]) -> DimLike:
    """Returns the number of elements of `shape`."""
    total: DimLike = 1
    for dim in shape:
        total = dim * total
    return total


def symbols_of(shape: Iterable[DimLike]) -> frozenset[Symbol]:
    """Returns every symbol in the dims of `shape`."""
    return frozenset(symbol for dim in shape for symbol in _walk_symbols(dim))


def _format_op(kind: str, args: tuple[DimLike, ...]) -> str:
    # functions rather than operators: `//` starts a comment in the text form
    return f"{kind}({', '.join(map(str, args))})"


def _format(value: Dim) -> str:
    parts: list[str] = []
    for mono, coef in value.terms:
        factors = [str(atom) if p == 1 else f"{atom}^{p}" for atom, p in mono]
        if abs(coef) != 1 or not factors:
            factors.insert(0, str(abs(coef)))
        text = "*".join(factors)
        if not parts:
            parts.append(text if coef > 0 else f"-{text}")
        else:
            parts.append(f"+ {text}" if coef > 0 else f"- {text}")
    return " ".join(parts)
