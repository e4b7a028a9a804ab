"""Sizes that an export holds for equal: guards say so, and their symbols are left apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch


def equal_sizes(values: Sequence[Any]) -> dict[sympy.Symbol, sympy.Expr]:
    """Returns symbols that are sums of others wherever the program is right.

    A mask over a cache and new tokens is padded where it is shorter than both; an export takes the
    other way, and the program holds for `total <= past + seq <= total` alone.

    Args:
        values: Fake tensors (None for other leaves) of the user's arguments, in order.

    Returns:
        Sums of symbols that are none of the keys, by symbol.
    """
    sizes = [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
    symbolic = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    if not symbolic:
        return {}
    given = dict.fromkeys(node.expr for node in symbolic if node.expr.is_Symbol)
    solved: dict[sympy.Symbol, sympy.Expr] = {}
    for zero in _zeros(guard.expr for guard in symbolic[0].shape_env.guards):
        found = _solved(sympy.expand(zero.subs(solved)), list(given))
        if found is not None:
            symbol, total = found
            solved = {each: expr.subs(symbol, total) for each, expr in solved.items()}
            solved[symbol] = total
    return solved


def _zeros(guards: Iterable[sympy.Basic]) -> list[sympy.Expr]:
    """Returns what guards say is zero: differences that are neither above nor below it."""
    below: dict[sympy.Expr, None] = {}
    for guard in guards:
        if isinstance(guard, sympy.Ge | sympy.Le | sympy.Eq):
            difference = sympy.expand(guard.lhs - guard.rhs)
            if not isinstance(guard, sympy.Ge):
                below[difference] = None
            if not isinstance(guard, sympy.Le):
                below[-difference] = None
    zeros = []
    for each in below:
        opposite = sympy.expand(-each)
        if opposite in below and opposite not in zeros:
            zeros.append(each)
    return zeros


def _solved(
    zero: sympy.Expr, given: Sequence[sympy.Symbol]
) -> tuple[sympy.Symbol, sympy.Expr] | None:
    """Returns a symbol of the arguments, the last that can be, as a sum of other ones."""
    factors = zero.as_coefficients_dict()
    if not all(term == 1 or term in given for term in factors):
        return None
    for symbol in reversed(given):
        factor = factors.get(symbol, 0)
        if abs(factor) != 1:
            continue
        rest = sympy.expand(symbol - zero / factor)
        if all(each.is_Integer and each > 0 for each in rest.as_coefficients_dict().values()):
            return symbol, rest
    return None
