"""Calls of repeated parts in `forward`: one loop where parts hand on what they give, else each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.backends.torch.naming import variable_hint
from regraft.backends.torch.parts import Part, PartGroup
from regraft.backends.torch.weight_source import attribute
from regraft.ir.dims import Dim, Symbol
from regraft.ir.graph import Node, Value

if TYPE_CHECKING:
    from regraft.backends.torch.graph_emitter import GraphEmitter


class PartCalls:
    """Where the parts of a graph are called.

    Attributes:
        readers: Every node of a part -> the node at whose place it is called.
        sizes: Sizes that the class of a group takes as its last arguments.
    """

    def __init__(self, groups: Sequence[PartGroup]) -> None:
        self.readers: dict[Node, Node] = {}
        self.sizes: dict[PartGroup, tuple[Symbol, ...]] = {}
        self._loops: dict[Node, PartGroup] = {}
        self._calls: dict[Node, tuple[PartGroup, Part]] = {}
        for group in groups:
            carried = group.carried()
            for part in group.parts:
                head = group.parts[0].nodes[0] if carried is not None else part.nodes[0]
                self.readers.update(dict.fromkeys(part.nodes, head))
                if carried is None:
                    self._calls[head] = (group, part)
            if carried is not None:
                self._loops[group.parts[0].nodes[0]] = group

    def emit(self, graph: GraphEmitter, node: Node) -> bool:
        """Emits the call that stands at a node; returns whether there is one."""
        group = self._loops.get(node)
        if group is not None:
            _emit_loop(graph, node, group, self._sizes_of(graph, group))
            return True
        found = self._calls.get(node)
        if found is None:
            return False
        group, part = found
        values = [part.result(place) for place in group.results]
        arguments = [graph.expression(value) for value in part.arguments]
        arguments += self._sizes_of(graph, group)
        call = f"{attribute(part.path)}({', '.join(arguments)})"
        names = []
        for value in values:
            if value.num_uses and any(user not in part.nodes for user, _ in value.uses):
                graph.names[value] = graph.variables.take(variable_hint(value))
            names.append(graph.names.get(value, "_"))
        graph.lines.add(f"{', '.join(names)} = {call}", *names)
        _note(graph, [value for value in values if value in graph.names])
        return True

    def _sizes_of(self, graph: GraphEmitter, group: PartGroup) -> list[str]:
        return [graph.size(Dim.of(symbol)) for symbol in self.sizes.get(group, ())]


def _emit_loop(graph: GraphEmitter, node: Node, group: PartGroup, sizes: Sequence[str]) -> None:
    """Emits the loop; a variable that nothing else reads carries what parts hand on."""
    dying = graph.dying_at(node)
    carried = group.carried() or {}
    first, last = group.parts[0], group.parts[-1]
    arguments = [graph.expression(value) for value in first.arguments]
    by_result = {result: argument for argument, result in carried.items()}
    names: list[str] = []
    for number, place in enumerate(group.results):
        value = last.result(place)
        argument = by_result[number]
        name = arguments[argument]
        if dying.count(name) == 1 == graph.variables.num_holders(name) and name not in names:
            graph.variables.hold(name)
        else:
            name = graph.variables.take(variable_hint(value))
            graph.lines.add(f"{name} = {arguments[argument]}", name)
        names.append(name)
        graph.names[value] = name
    for argument, result in carried.items():
        arguments[argument] = names[result]
    arguments += sizes
    numbers = [int(part.path.rpartition(".")[2]) for part in group.parts]
    step = graph.variables.take("i")
    is_range = numbers == list(range(numbers[0], numbers[-1] + 1))
    bounds = f"{numbers[0]}, {numbers[-1] + 1}" if numbers[0] else str(len(numbers))
    graph.lines.add(f"for {step} in {f'range({bounds})' if is_range else tuple(numbers)}:", step)
    with graph.block():
        owner = f"{attribute(group.path)}[{step}]" if group.path else f"self[{step}]"
        graph.lines.add(f"{', '.join(names)} = {owner}({', '.join(arguments)})", *names)
    graph.variables.release(step)
    _note(graph, [last.result(place) for place in group.results])


def _note(graph: GraphEmitter, values: Sequence[Value]) -> None:
    anchor = graph.lines.anchor()
    for value in values:
        graph.sizes.note(value, graph.names[value], anchor)
