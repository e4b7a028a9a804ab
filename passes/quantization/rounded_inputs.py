"""Statistics of what layers read, part by part: of the float module, and as layers are rewritten.

Layers are visited in the order of the graph; each part of it runs once for all samples, from the
values that crossed where the last visit was. No more weights are in memory than those of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from regraft.ir.constants import is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType
from regraft.passes.calibration.statistics import Statistics, gathered
from regraft.passes.protocol import Context
from regraft.passes.quantization.sites import Linear
from regraft.passes.reconstruction.frontier import Frontier


class InputsInOrder:
    """Runs a module piece by piece, while its layers may be rewritten.

    Memory: of the float values that cross one place of the graph, on all samples.

    Args:
        module: The module; what lies before the last visit must not change any more.
        ctx: Gives samples and a source of activations.
        with_moments: Whether statistics have second moments.
    """

    def __init__(self, module: Module, ctx: Context, *, with_moments: bool) -> None:
        if ctx.activations is None:
            raise AssertionError("statistics were gathered before")
        self._module = module
        self._with_moments = with_moments
        self._frontier = Frontier(module, ctx.activations, ctx.samples)
        self._crossing: list[Value] = []
        self._last: Node | None = None

    def statistics(self, readers: Mapping[Value, Linear]) -> dict[Value, Statistics]:
        """Returns statistics of values as they are now.

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
        items = (dict(zip(read, row, strict=True)) for row in zip(*columns, strict=True))
        found = gathered(items, None if self._with_moments else ())
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


class FloatInputs:
    """The same of a module as it is now, whatever becomes of it.

    Args:
        module: The module; a copy of its graph, which has the same weights, is kept.
        ctx: Gives samples and a source of activations.
    """

    def __init__(self, module: Module, ctx: Context) -> None:
        self._values: dict[Value, Value] = {}
        copy = module.clone(self._values)
        # nodes are known by what they give, which is not there any more once they are rewritten
        self._nodes = {node: self._copied(node) for node in module.graph if node.outputs}
        self._inputs = InputsInOrder(copy, ctx, with_moments=False)

    def _copied(self, node: Node) -> Node:
        maker = self._values[node.outputs[0]].producer
        if maker is None:
            raise AssertionError("what a node gives has a producer")
        return maker

    def statistics(self, readers: Mapping[Value, Linear]) -> dict[Value, Statistics]:
        """Returns statistics of values, without second moments.

        Args:
            readers: A layer that reads each value.

        Raises:
            UsageError: When a value holds NaN or Inf on a sample.
        """
        copies = {
            self._values[x]: replace(site, node=self._nodes[site.node])
            for x, site in readers.items()
        }
        found = self._inputs.statistics(copies)
        return {x: found[self._values[x]] for x in readers}


def _is_float(value: Value) -> bool:
    dtype = value.dtype if isinstance(value.type, TensorType) else None
    return dtype is not None and dtype.is_float and not is_constant(value)
