"""Sizes as Python expressions: symbols are read from the shape of a value that has them."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.backends.torch.lines import Line
from regraft.backends.torch.naming import Variables, identifier
from regraft.ir.dims import Dim, DimLike, DimOp, Symbol
from regraft.ir.errors import UnsupportedError
from regraft.ir.graph import Value


@dataclass(slots=True)
class _Source:
    """Where a symbol can be read: right after a line, from an axis of a variable."""

    line: Line
    expression: str
    axis: int
    variable: str | None = None


class SizeReader:
    """Writes sizes; a symbol's variable is assigned where its value is first known, when needed."""

    def __init__(self, variables: Variables, *, may_ask: bool = False) -> None:
        """Starts without sizes.

        Args:
            variables: Names that are taken.
            may_ask: Whether sizes that no value shows become arguments of the function.
        """
        self._variables = variables
        self._may_ask = may_ask
        self._sources: dict[str, _Source] = {}
        self.asked: dict[Symbol, str] = {}

    def note(self, value: Value, expression: str, line: Line) -> None:
        """Remembers the symbols that the shape of a value shows.

        Args:
            value: The value.
            expression: What holds it right after `line`.
            line: Where it is assigned.
        """
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.name not in self._sources:
                self._sources[symbol.name] = _Source(line, expression, axis)

    def is_new(self, value: Value) -> bool:
        """Returns whether a size that only run time knows can be read from `value` first."""
        for dim in value.shape or ():
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            if symbol is not None and symbol.defined and symbol.name not in self._sources:
                return True
        return False

    def can_read(self, dim: DimLike) -> bool:
        """Returns whether every symbol of a size can be read."""
        return not isinstance(dim, Dim) or all(s.name in self._sources for s in dim.symbols())

    def mark(self) -> set[str]:
        """Returns the symbols known now, for `forget_since`."""
        return set(self._sources)

    def forget_since(self, mark: set[str]) -> None:
        """Forgets the symbols that were learnt since: the block that assigns them is over."""
        for name in self._sources.keys() - mark:
            del self._sources[name]

    def size(self, dim: DimLike, *, is_operand: bool = False) -> str:
        """Returns a Python expression of a size.

        Args:
            dim: The size.
            is_operand: Whether it becomes an operand, so that a sum needs parentheses.

        Raises:
            UnsupportedError: When a symbol can be read from no value.
        """
        if not isinstance(dim, Dim):
            return str(int(dim))
        text = ""
        num_products = 0
        for mono, coef in dim.terms:
            factors = [
                self._symbol(atom) if isinstance(atom, Symbol) else self._op(atom)
                for atom, power in mono
                for _ in range(power)
            ]
            if abs(coef) != 1 or not factors:
                factors.insert(0, str(abs(coef)))
            num_products += len(factors) > 1
            term = " * ".join(factors)
            if not text:
                text = term if coef > 0 else f"-{term}"
            else:
                text += f" + {term}" if coef > 0 else f" - {term}"
        is_plain = len(dim.terms) == 1 and not num_products and not text.startswith("-")
        return f"({text})" if is_operand and not is_plain else text

    def _symbol(self, symbol: Symbol) -> str:
        source = self._sources.get(symbol.name)
        if source is None and self._may_ask:
            if symbol not in self.asked:
                self.asked[symbol] = self._variables.take_forever(identifier(symbol.name).lower())
            return self.asked[symbol]
        if source is None:
            raise UnsupportedError(
                f"size `{symbol.name}` cannot be read from any value in the generated code"
            )
        if source.variable is None:
            name = self._variables.take_forever(identifier(symbol.name).lower())
            source.variable = name
            source.line.after.append(f"{name} = {source.expression}.shape[{source.axis}]")
        return source.variable

    def _op(self, atom: DimOp) -> str:
        operands = [self.size(arg, is_operand=True) for arg in atom.args]
        if atom.kind in ("min", "max"):
            return f"{atom.kind}({', '.join(self.size(arg) for arg in atom.args)})"
        sign = "%" if atom.kind == "mod" else "//"
        return f"({operands[0]} {sign} {operands[1]})"
