"""Decides which products become templates with element-wise chains before and after them.

Each product takes the chains that make its time and that of the kernels around it least, those
products first that gain most. Without a gain a product stays with the vendor's library.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from regraft.backends.triton import product_costs
from regraft.backends.triton.product_chains import (
    Core,
    cores_of,
    epilogues,
    is_of_rows,
    is_prologue,
    prologue,
)
from regraft.backends.triton.region_nodes import (
    MAX_OPERANDS,
    Shape,
    inputs_of,
    outputs_of,
    reads_of,
    seconds_of,
    traffic_of,
)
from regraft.backends.triton.regions import Partition
from regraft.ir.graph import Node, Value

EXACT_TO = 0.02
"""Of a time: what the model of costs cannot tell apart; fewer bytes decide then."""


@dataclass(frozen=True, slots=True, eq=False)
class ProductRegion:
    """A product and the chains that one kernel computes with it.

    Args:
        core: The product.
        before: What makes its rows, in order.
        after: What reads its result, in order.
        outputs: What is read outside.
        anchor: The node at whose place the kernel is called.
        seconds: Estimated time.
        separate_seconds: Estimated time of the product and the chains otherwise.
        saved_bytes: Bytes that are neither written nor read, by the same estimate.
    """

    core: Core
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    outputs: tuple[Value, ...]
    anchor: Node
    seconds: float
    separate_seconds: float
    saved_bytes: int

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes."""
        return (*self.before, *self.core.nodes, *self.after)

    @property
    def again(self) -> tuple[Node, ...]:
        """Nodes that others compute too: none."""
        return ()

    @property
    def space(self) -> Shape:
        """The shape of the product."""
        return self.core.result.shape or ()


@dataclass(frozen=True, slots=True, eq=False)
class Refusal:
    """Chains around a product that cost more with it than without.

    Args:
        core: The product.
        before: What makes its rows.
        after: What reads its result.
        seconds: Estimated time in one kernel.
        separate_seconds: Estimated time otherwise.
    """

    core: Core
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    seconds: float
    separate_seconds: float


@dataclass(frozen=True, slots=True)
class _Costs:
    """Time and bytes of a way to compute some nodes."""

    seconds: float
    traffic: int

    def plus(self, other: _Costs) -> _Costs:
        return _Costs(self.seconds + other.seconds, self.traffic + other.traffic)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """Chains for one product, and what they cost beside nothing."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    costs: _Costs
    separate: _Costs

    @property
    def gain(self) -> tuple[float, int]:
        """Seconds, where they can be told apart, and bytes."""
        seconds = self.separate.seconds - self.costs.seconds
        is_known = abs(seconds) > EXACT_TO * self.separate.seconds
        return (seconds if is_known else 0.0, self.separate.traffic - self.costs.traffic)


class Products:
    """The products of a list of nodes.

    Attributes:
        regions: Those that are templates, in the order of their products.
        refused: Those whose chains cost more in a template.

    Args:
        nodes: In order.
        left: Nodes that are in no chain.
        lost: Those of them whose products others take in.
        activated: Activations that a kernel takes with a product in any case, by product.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        left: Iterable[Node],
        lost: Container[Node],
        activated: Mapping[Node, Node],
    ) -> None:
        self._places = {node: idx for idx, node in enumerate(nodes)}
        self._activated = activated
        self._owners = {activation: product for product, activation in activated.items()}
        cores = list(cores_of(nodes))
        own = {node for core in cores for node in core.nodes}
        self._closed = {*left, *own}
        cores = [core for core in cores if not any(node in lost for node in core.nodes)]
        self.regions: list[ProductRegion] = []
        self.refused: list[Refusal] = []
        if cores:
            self._partition = Partition(nodes, self._closed)
            self._decide(cores)

    def _is_free(self, node: Node) -> bool:
        return node in self._places and node not in self._closed

    def _takes(self, core: Core) -> Callable[[Node], bool]:
        """Returns whether a product may take a node: not an activation that another one has."""
        return lambda node: (
            self._is_free(node) and self._owners.get(node, core.product) is core.product
        )

    def _decide(self, cores: Sequence[Core]) -> None:
        found = {core: self._best(core) for core in cores}
        order = sorted(
            (core for core in cores if found[core] is not None),
            key=lambda core: _negated(found[core]),
        )
        for core in order:
            choice = self._best(core)  # others may have taken some of it
            if choice is None:
                continue
            if choice.gain <= (0.0, 0):
                self.refused.append(
                    Refusal(
                        core, choice.before, choice.after, choice.costs.seconds,
                        choice.separate.seconds,
                    )
                )  # fmt: skip
                continue
            self._closed.update(choice.before, choice.after)
            self.regions.append(self._region(core, choice))
        self.regions.sort(key=lambda region: self._places[region.core.product])
        self.refused.sort(key=lambda refusal: self._places[refusal.core.product])

    def _region(self, core: Core, choice: _Choice) -> ProductRegion:
        nodes = [*core.nodes, *choice.after]
        anchor = max(nodes, key=self._places.__getitem__)
        return ProductRegion(
            core, choice.before, choice.after, tuple(outputs_of(nodes)), anchor,
            choice.costs.seconds, choice.separate.seconds,
            choice.separate.traffic - choice.costs.traffic,
        )  # fmt: skip

    def _best(self, core: Core) -> _Choice | None:
        """Returns the chains that gain most, None where there are none."""
        place = self._places.__getitem__
        can_take = self._takes(core)
        afters = [tuple(chain) for chain in epilogues(core, self._places, can_take)]
        nearest = prologue(core, can_take)
        befores = [
            tuple(sorted(nearest[:count], key=place)) for count in range(1, len(nearest) + 1)
        ]
        befores = [chain for chain in befores if is_prologue(core, chain)]
        usual = tuple(self._usual(core))
        choices = [self._choice(core, (), after) for after in afters if after != usual]
        last = max(filter(None, choices), key=lambda choice: choice.gain, default=None)
        found = dict.fromkeys([(), usual, () if last is None else last.after])
        # rows that a program makes for all columns at once leave no registers for more
        ends = [end for end in found if not any(map(is_of_rows, end))]
        choices += [
            self._choice(core, before, after)
            for before in befores
            for after in ends
            if after or not core.is_shaped_after
        ]
        return max(filter(None, choices), key=lambda choice: choice.gain, default=None)

    def _usual(self, core: Core) -> list[Node]:
        """Returns the activation that a kernel takes with a product in any case."""
        activation = self._activated.get(core.product)
        return [] if activation is None or activation in self._closed else [activation]

    def _choice(
        self, core: Core, before: tuple[Node, ...], after: tuple[Node, ...]
    ) -> _Choice | None:
        if len(inputs_of([*before, *after])) > MAX_OPERANDS:
            return None
        taken = {*before, *after}
        handled = set(self._usual(core))
        if handled:
            separate = _template(core, (), tuple(handled))
        else:
            separate = _Costs(
                product_costs.library_seconds(core), product_costs.library_traffic(core)
            )
        groups = dict.fromkeys(
            tuple(n for n in self._partition.together(node) if self._is_free(n))
            for node in taken | handled
        )
        costs = _template(core, before, after)
        for group in groups:
            separate = separate.plus(self._chains(set(group) - handled))
            costs = costs.plus(self._chains(set(group) - taken))
        return _Choice(before, after, costs, separate)

    def _chains(self, nodes: set[Node]) -> _Costs:
        """Returns the costs of nodes as chains: one per part that hangs together."""
        graph = nx.Graph()
        graph.add_nodes_from(nodes)
        for node in nodes:
            for value in reads_of(node):
                if value.producer in nodes:
                    graph.add_edge(value.producer, node)
        total = _Costs(0.0, 0)
        for part in nx.connected_components(graph):
            chain = sorted(part, key=self._places.__getitem__)
            total = total.plus(_Costs(seconds_of(chain, set()), traffic_of(chain, set())))
        return total


def _template(core: Core, before: Sequence[Node], after: Sequence[Node]) -> _Costs:
    return _Costs(
        product_costs.template_seconds(core, before, after),
        product_costs.template_traffic(core, before, after),
    )


def _negated(choice: _Choice | None) -> tuple[float, int]:
    seconds, traffic = (0.0, 0) if choice is None else choice.gain
    return (-seconds, -traffic)
