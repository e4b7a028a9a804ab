"""What the graphs of one module share: weights, symbols, assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.ir.dims import Dim, DimLike, Symbol
from regraft.ir.weights import WeightStore

if TYPE_CHECKING:
    from regraft.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Assumption:
    """A fact that could not be decided and was taken; tested at run time, printed in reports.

    Args:
        left: One size.
        right: The size it is assumed to equal.
        reason: Which node needed it.
    """

    left: DimLike
    right: DimLike
    reason: str


class Scope:
    """What the graphs of one module share: weights, symbols, and the counter for fresh symbols."""

    __slots__ = ("_next_symbol", "assumptions", "main", "symbols", "weights")

    def __init__(self) -> None:
        self.main: Graph | None = None  # the graph that is no body: the first one of the scope
        self.weights = WeightStore()
        self.symbols: dict[str, Symbol] = {}
        self.assumptions: dict[tuple[DimLike, DimLike], Assumption] = {}
        self._next_symbol = 0

    def assume_equal(self, left: DimLike, right: DimLike, reason: str) -> None:
        """Records an equality of sizes that could not be decided; idempotent."""
        self.assumptions.setdefault((left, right), Assumption(left, right, reason))

    def symbol(self, name: str, **facts: Any) -> Symbol:
        """Returns the symbol of that name, made with `facts` when it does not exist yet."""
        found = self.symbols.get(name)
        if found is None:
            found = self.symbols[name] = Symbol(name, **facts)
        return found

    def fresh(self, lo: int = 0, hi: int | None = None) -> Dim:
        """Returns a new defined symbol (a size that a node's result decides)."""
        while f"u{self._next_symbol}" in self.symbols:
            self._next_symbol += 1
        return Dim.of(self.symbol(f"u{self._next_symbol}", lo=lo, hi=hi, defined=True))
