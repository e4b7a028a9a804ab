"""Bounds of values: what every element is proven to lie between, whatever the inputs are.

Bounds go forward through the graph. Those of a value broadcast to its shape: axes of static size
have their own bounds or share one, symbolic axes share one. Inputs are unbounded unless ranges are
given; normalizations, softmax and saturating functions make bounds of their own, so that a feed-
forward part behind a norm has bounds that depend on weights alone. Sums are widened by what f32
rounding may add.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Graph, Value
from regraft.ir.ops.slicing import split
from regraft.ir.types import DType
from regraft.passes.analysis.bounds import Bounds, between, unbounded, widened
from regraft.passes.analysis.interval_rules import RULES

_COARSE = {DType.F16: 1 << 15, DType.BF16: 1 << 18}
"""Roundings of f32 that one in these types is worth, four times: its operands were rounded too."""

MAX_ELEMENTS = 1 << 22
"""Of a constant of more elements nothing is said."""


class Intervals:
    """Bounds of the values of one graph, found when they are asked for; each once.

    Args:
        graph: The graph; bodies have no bounds.
        ranges: What inputs lie between, by name.
    """

    def __init__(
        self, graph: Graph, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        self.graph = graph
        self.ranges = dict(ranges or {})
        self.known: dict[Value, Bounds] = {}

    def of(self, value: Value) -> Bounds:
        """Returns the bounds of a value. Cost: O(nodes before it), once."""
        found = self.known.get(value)
        if found is not None:
            return found
        # an explicit stack: chains are longer than Python's
        pending = [value]
        while pending:
            last = pending[-1]
            if last in self.known:
                pending.pop()
                continue
            missing = [] if is_constant(last) else self._missing(last)
            if missing:
                pending += missing
                continue
            self.known[last] = self._find(last)
            pending.pop()
        return self.known[value]

    def _missing(self, value: Value) -> list[Value]:
        node = value.producer
        if node is None or node.graph is not self.graph:
            return []
        return [item for item in node.inputs if item is not None and item not in self.known]

    def _find(self, value: Value) -> Bounds:
        if is_constant(value):
            return self._constant(value)
        node = value.producer
        if node is None:
            given = self.ranges.get(value.name or "")
            return unbounded(value.rank) if given is None else between(*given, value.rank)
        rule = RULES.get(node.op)
        is_first = value.index == 0 or node.op is split
        if rule is None or value.rank is None or node.graph is not self.graph or not is_first:
            return unbounded(value.rank)
        if any(item is not None and item.rank is None for item in node.inputs):
            return unbounded(value.rank)
        operands = [None if item is None else self.known[item] for item in node.inputs]
        with np.errstate(invalid="ignore", over="ignore"):
            found = rule(node, operands)
        if found is None or np.isnan(found.low).any() or np.isnan(found.high).any():
            return unbounded(value.rank)
        coarse = _COARSE.get(value.dtype) if value.dtype is not None else None
        return found if coarse is None else widened(found, coarse)

    def _constant(self, value: Value) -> Bounds:
        array = constant_of(value, MAX_ELEMENTS * 8)
        if array is None or (array.dtype.kind not in "fiub" and array.dtype.kind != "V"):
            return unbounded(value.rank)
        wide = array.astype(np.float64)
        if wide.size > MAX_ELEMENTS or wide.size == 0 or np.isnan(wide).any():
            return unbounded(value.rank)
        return Bounds(wide, wide)
