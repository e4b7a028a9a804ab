"""Repeated layers: consecutive parts of the residual stream that are the same but for weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import Trait
from regraft.passes.analysis.residual import Residual, streams

_MAX_LITERAL_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One of several equal layers.

    Args:
        input: The stream before it.
        output: The stream after it.
        nodes: Its nodes; the n-th node of every layer of a group has the same part.
        constants: The constants they read, in the same order in every layer.
        sums: Its residual sums.
    """

    input: Value
    output: Value
    nodes: tuple[Node, ...]
    constants: tuple[Value, ...]
    sums: tuple[Residual, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LayerGroup:
    """Equal layers that follow each other.

    Args:
        layers: At least two, in order.
    """

    layers: tuple[Layer, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of all layers."""
        return tuple(node for layer in self.layers for node in layer.nodes)

    def describe(self) -> dict[str, object]:
        """Returns it as JSON data."""
        first, last = self.layers[0], self.layers[-1]
        return {
            "count": len(self.layers),
            "input": first.input.name,
            "output": last.output.name,
            "nodes": len(first.nodes),
            "sums": len(first.sums),
            "outputs": [layer.output.name for layer in self.layers],
        }


@dataclass(frozen=True, slots=True)
class _Part:
    """A residual sum with what precedes it, and its structure."""

    residual: Residual
    output: Value
    nodes: tuple[Node, ...]
    constants: tuple[Value, ...]
    key: Hashable


def repeated_layers(graph: Graph) -> list[LayerGroup]:
    """Returns the groups of equal layers of a graph (bodies aside), in order; cost O(nodes)."""
    groups = []
    for chain in streams(graph):
        if len(chain) < 2:
            continue
        parts = _parts(chain)
        groups += [_group(chunk) for chunk in _repeats(parts)]
    return sorted(groups, key=lambda group: group.nodes[0].order)


def _repeats(parts: Sequence[_Part]) -> Iterator[list[list[_Part]]]:
    """Yields runs of equal consecutive chunks, the longest cover with the shortest chunks first."""
    start = 0
    keys = [part.key for part in parts]
    while start < len(parts) - 1:
        best = (0, 0)  # parts covered, -period
        for period in range(1, (len(parts) - start) // 2 + 1):
            end = start + period
            while end < len(parts) and keys[end] == keys[end - period]:
                end += 1
            count = (end - start) // period
            if count >= 2:
                best = max(best, (count * period, -period))
        if best[0] == 0:
            start += 1
            continue
        covered, period = best[0], -best[1]
        yield [list(parts[i : i + period]) for i in range(start, start + covered, period)]
        start += covered


def _group(chunks: list[list[_Part]]) -> LayerGroup:
    return LayerGroup(tuple(_layer(chunk) for chunk in chunks))


def _layer(chunk: list[_Part]) -> Layer:
    return Layer(
        chunk[0].residual.skip,
        chunk[-1].output,
        tuple(node for part in chunk for node in part.nodes),
        tuple(value for part in chunk for value in part.constants),
        tuple(part.residual for part in chunk),
    )


def _parts(chain: list[Residual]) -> list[_Part]:
    """Returns a part per residual sum: from the skip to the next skip, a norm after it included."""
    parts = []
    usual = next((each.link for each in chain[1:] if each.link), ())
    for i, residual in enumerate(chain):
        is_last = i + 1 == len(chain)
        end = _norm_after(residual, usual) if is_last else chain[i + 1].skip
        parts.append(_part(residual, end))
    return parts


def _norm_after(last: Residual, usual: tuple[Node, ...]) -> Value:
    """Returns what follows the last sum when it looks like the link between the others."""
    if not usual:
        return last.output
    reached = {last.output}
    nodes: list[Node] = []
    pending = sorted(last.output.users, key=lambda node: node.order)
    while pending and len(nodes) < len(usual):
        node = pending.pop(0)
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        if node in nodes or not all(value in reached for value in operands):
            continue
        nodes.append(node)
        reached.update(node.outputs)
        users = (user for value in node.outputs for user in value.users)
        pending = sorted({*pending, *users}, key=lambda node: node.order)
    same = [node.op for node in nodes] == [node.op for node in usual]
    return nodes[-1].outputs[0] if same else last.output


def _part(residual: Residual, end: Value) -> _Part:
    """Numbers the nodes of a part from its start and describes them by what they read."""
    numbers: dict[Value, int] = {residual.skip: 0}
    order: list[Node] = []
    constants: dict[Value, None] = {}
    parts: list[Hashable] = []
    inside = {*residual.nodes, residual.node}
    first = residual.node.order
    stack: list[tuple[Node, bool]] = []
    if end.producer is not None:
        stack.append((end.producer, False))
    seen: set[Node] = set()
    while stack:
        node, is_done = stack.pop()
        if not is_done:
            if node in seen:
                continue
            seen.add(node)
            stack.append((node, True))
            for value in reversed(node.inputs):
                made = None if value is None else value.producer
                if made is None or value in numbers or Trait.CONSTANT in made.op.traits:
                    continue
                if made in inside or made.order > first:
                    stack.append((made, False))
            continue
        order.append(node)
        operands = tuple(_operand(value, numbers, constants) for value in node.inputs)
        attrs = tuple(map(_plain, node.attrs.values()))
        types = tuple(value.type for value in node.outputs)
        parts.append((node.op.name, attrs, operands, types))
        for value in node.outputs:
            numbers[value] = len(numbers)
    return _Part(residual, end, tuple(order), tuple(constants), tuple(parts))


def _operand(
    value: Value | None, numbers: dict[Value, int], constants: dict[Value, None]
) -> Hashable:
    if value is None:
        return None
    if value in numbers:
        return numbers[value]
    made = value.producer
    if made is not None and Trait.CONSTANT in made.op.traits:
        literal = constant_of(value, _MAX_LITERAL_BYTES)
        if literal is not None and literal.size <= 1:
            return ("number", value.type, literal.tobytes())
        constants.setdefault(value)
        return ("constant", value.type)
    return ("outer", value.type)


def _plain(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes())
    return value if isinstance(value, tuple | int | float | str | bytes | None) else repr(value)
