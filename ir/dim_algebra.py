"""Symbolic sizes and their arithmetic: polynomials, division, remainder, minimum and maximum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from math import gcd

from regraft.ir.dim_atoms import Atom, DimOp, Monomial, Symbol, Terms, format_terms
from regraft.ir.dim_bounds import bounds


class Dim:
    """A size that is not a constant: a sum of integer multiples of products of atoms."""

    __slots__ = ("_hash", "_str", "terms")

    def __init__(self, terms: Terms) -> None:
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
        return frozenset(walk_symbols(self))

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
            self._str = format_terms(self.terms)
        return self._str

    def __repr__(self) -> str:
        return f"Dim({self})"

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of symbolic dim `{self}` is not known before run time")


DimLike = int | Dim


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
    if quotient is None:
        quotient = _quotient_by_part(a, b)
    if quotient is not None:
        return quotient
    if isinstance(b, int) and isinstance(a, Dim):
        if divisor_of(a) % b == 0 or _is_multiple(a, b):
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
            return _from_terms(whole) + _op("floordiv", rest, b)
    return _op("floordiv", a, b)


def _quotient_by_part(a: DimLike, b: DimLike) -> DimLike | None:
    """Returns n for a / exactdiv(a, n), as a size split into n parts and back; None otherwise."""
    part = as_op(b, "exactdiv")
    return part.args[1] if part is not None and part.args[0] == a else None


def _is_multiple(a: Dim, b: int) -> bool:
    """Returns whether `b` divides `a` because remainders in it complete each other."""
    return b > 0 and _congruent(a, b) == 0


def _congruent(a: Dim, b: int) -> DimLike:
    """Returns a size with the same remainder by `b`, without the remainders that do not matter."""
    terms: list[tuple[Monomial, int]] = []
    changed = False
    for mono, coef in a.terms:
        atom = mono[0][0] if len(mono) == 1 and mono[0][1] == 1 else None
        if isinstance(atom, DimOp) and atom.kind == "mod":
            x, m = atom.args
            # c * mod(x, m) == c * x - c * m * floor(x / m), whose last term b divides
            if isinstance(m, int) and m > 0 and coef * m % b == 0:
                terms.extend(_terms(coef * x))
                changed = True
                continue
        terms.append((mono, coef))
    if not changed:
        return a
    rest = _from_terms([(mono, coef % b) for mono, coef in _terms(_from_terms(terms))])
    return _congruent(rest, b) if isinstance(rest, Dim) else rest % b


def _nested_floor(a: DimLike, b: int) -> DimLike | None:
    """Returns floor((floor(x / m) + r) / b) as floor((x + m * r) / (m * b)), else None."""
    floors = [floor for term in _terms(a) if (floor := as_op(Dim((term,)), "floordiv"))]
    if b <= 0 or len(floors) != 1:
        return None
    x, m = floors[0].args
    whole = isinstance(m, int) and m > 0
    return floordiv(x + m * (a - _op("floordiv", x, m)), m * b) if whole else None


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
        if isinstance(a, Dim) and b > 0:
            a = _congruent(a, b)
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
        inner = as_op(value, kind)
        flat.extend(inner.args if inner else (value,))
    kept: list[DimLike] = []
    for value in flat:
        if any(_dominates(kind, other, value) for other in kept):
            continue
        kept = [other for other in kept if not _dominates(kind, value, other)]
        kept.append(value)
    return kept[0] if len(kept) == 1 else _op(kind, *sorted(kept, key=str))


def _dominates(kind: str, a: DimLike, b: DimLike) -> bool:
    """Returns whether `a` makes `b` redundant under `kind`."""
    lo, hi = bounds(a - b)
    return (lo is not None and lo >= 0) if kind == "max" else (hi is not None and hi <= 0)


def as_op(value: DimLike, kind: str) -> DimOp | None:
    """Returns the operation of that kind that a size is, or None."""
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


def walk_symbols(value: DimLike) -> Iterable[Symbol]:
    """Yields the symbols of a size, with repetitions."""
    if isinstance(value, Dim):
        for mono, _ in value.terms:
            for atom, _ in mono:
                if isinstance(atom, Symbol):
                    yield atom
                else:
                    for arg in atom.args:
                        yield from walk_symbols(arg)
