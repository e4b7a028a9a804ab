"""Statistics of what layers read once the layers before them are rewritten.

Layers are visited in the order of the graph; each part of it runs once for all samples, from the
values that crossed where the last visit was.
"""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType
from regraft.passes.calibration.statistics import Statistics, gathered
from regraft.passes.protocol import Context
from regraft.passes.quantization.sites import Linear
from regraft.passes.reconstruction.frontier import Frontier


class RoundedInputs:
    """Runs a module piece by piece while its layers are rewritten.

    Memory: of the float values that cross one place of the graph, on all samples.

    Args:
        module: The module; what lies before the last visit must not change any more.
        ctx: Gives samples and a source of activations.
    """

    def __init__(self, module: Module, ctx: Context) -> None:
        if ctx.activations is None:
            raise AssertionError("statistics were gathered before")
        self._module = module
        self._frontier = Frontier(module, ctx.activations, ctx.samples)
        self._crossing: list[Value] = []
        self._last: Node | None = None

    def statistics(self, readers: Mapping[Value, Linear]) -> dict[Value, Statistics]:
        """Returns statistics, second moments among them, of values as they are now.

        Args:
            readers: A layer that reads each value, which itself may have been replaced.

        Raises:
            UsageError: When a value holds NaN or Inf on a sample.
        """
        place = min((site.node for site in readers.values()), key=lambda node: node.order)
        self._advance(place)
        now = {x: site.node.inputs[0] for x, site in readers.items()}
        read = [value for value in now.values() if value is not None]
        # what crosses is found first: the values themselves may lie beyond it
        self._frontier.values(self._crossing)
        columns = self._frontier.values(read)
        found = gathered(dict(zip(read, row, strict=True)) for row in zip(*columns, strict=True))
        self._frontier.keep(self._crossing)
        return {x: found[value] for x, value in now.items() if value is not None}

    def _advance(self, place: Node) -> None:
        """Finds the float values that are made before a node and read at it or after.

        Cost: O(nodes since the last place).
        """
        node = self._module.graph.first
        made: list[Value] = []
        if self._last is not None and self._last.graph is self._module.graph:
            node, made = self._last.next, list(self._crossing)
        while node is not None and node is not place:
            made += [value for value in node.outputs if _is_float(value)]
            self._last, node = node, node.next
        self._crossing = [
            value
            for value in made
            if value.is_output or any(user.order >= place.order for user in value.users)
        ]


def _is_float(value: Value) -> bool:
    dtype = value.dtype if isinstance(value.type, TensorType) else None
    return dtype is not None and dtype.is_float and not is_constant(value)
