"""What symbolic sizes are made of: symbols, opaque operations, and how they print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regraft.ir.dim_algebra import DimLike


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
Terms = tuple[tuple[Monomial, int], ...]  # ((monomial, coefficient), ...)


def _format_op(kind: str, args: tuple[DimLike, ...]) -> str:
    # functions rather than operators: `//` starts a comment in the text form
    return f"{kind}({', '.join(map(str, args))})"


def format_terms(terms: Terms) -> str:
    """Returns a polynomial as text."""
    parts: list[str] = []
    for mono, coef in terms:
        factors = [str(atom) if p == 1 else f"{atom}^{p}" for atom, p in mono]
        if abs(coef) != 1 or not factors:
            factors.insert(0, str(abs(coef)))
        text = "*".join(factors)
        if not parts:
            parts.append(text if coef > 0 else f"-{text}")
        else:
            parts.append(f"+ {text}" if coef > 0 else f"- {text}")
    return " ".join(parts)
