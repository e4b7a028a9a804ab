"""A site: a kind of place in the graph where the target offers more than one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from regraft.backends.onnx.legalize.costs import Features
from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike, bind, bounds
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import OpSpec

TYPICAL: tuple[int, ...] = (16, 64, 128, 256, 512)
"""Values assumed for a length that nothing fixes."""


Build = Callable[[Builder], Value | Sequence[Value]]
"""Builds what replaces the results of the node that a form was offered for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What legalization knows besides the graph.

    Args:
        max_opset: Highest emission opset; forms that need a higher one are not offered.
        dims: Sizes that the user expects, by symbol.
    """

    max_opset: int
    dims: Mapping[str, int]

    def sizes(self, size: DimLike, typical: Sequence[int] = TYPICAL) -> tuple[int, ...]:
        """Returns the possible values of a size: one when it is known, else typical ones."""
        bound = bind(size, dict(self.dims)) if isinstance(size, Dim) else size
        if isinstance(bound, int):
            return (bound,)
        lo, hi = bounds(bound)
        fitting = tuple(
            value
            for value in typical
            if (lo is None or value >= lo) and (hi is None or value <= hi)
        )
        return fitting or ((lo or hi or 1),)


class Site(Protocol):
    """Offers forms for nodes of some operators."""

    @property
    def name(self) -> str:
        """Its name in cost tables and decisions."""

    @property
    def roots(self) -> tuple[OpSpec, ...]:
        """Operators it starts at."""

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns what the choice depends on, None when the node is no such site."""

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns the possible forms, the standard one first; None leaves the node as it is."""
