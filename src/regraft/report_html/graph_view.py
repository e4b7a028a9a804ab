"""A graph as a page shows it: compute nodes in layers, with edges, without constants.

The layout is made here and not in the page: longest-path layers, then two sweeps that order each
layer by the mean place of its neighbours. Both are linear in nodes and edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import opaque, weight
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import Trait

MAX_NODES = 20_000
"""A larger graph is not drawn: the page would take longer to open than to be useful."""

_MAX_TEXT = 160
_SWEEPS = 2


@dataclass(frozen=True, slots=True)
class Box:
    """One node of the view.

    Args:
        op: Operator, `input` or `output`.
        name: Name of the first result.
        types: Types of the results.
        detail: Attributes and weights, one `name = value` each.
        origin: Where it comes from.
        signature: What makes two nodes of that name the same: operator, attributes, operands.
    """

    op: str
    name: str
    types: str
    detail: tuple[str, ...]
    origin: str
    signature: str


@dataclass(frozen=True, slots=True)
class GraphView:
    """Boxes with their places, and edges between them.

    Args:
        boxes: In topological order.
        layers: Layer of each box, from the top.
        places: Place of each box within its layer, in box widths; 0 is the middle.
        edges: (from, to) by position in `boxes`.
        num_nodes: Compute nodes of the graph, also when it is too large to be drawn.
    """

    boxes: tuple[Box, ...]
    layers: tuple[int, ...]
    places: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]
    num_nodes: int

    @property
    def is_drawn(self) -> bool:
        """Whether the graph is small enough to be drawn."""
        return bool(self.boxes)


def view_of(module: Module) -> GraphView:
    """Returns the view of a module's graph; nodes of bodies stand above the node they belong to.

    Cost: O(nodes + edges).
    """
    graph = module.graph
    count = sum(Trait.CONSTANT not in node.op.traits for node in graph.walk())
    if count > MAX_NODES:
        return GraphView((), (), (), (), count)
    boxes: list[Box] = []
    edges: list[tuple[int, int]] = []
    made: dict[Value, int] = {}
    for value in graph.inputs:
        made[value] = len(boxes)
        boxes.append(Box("input", str(value.name), str(value.type), (), "", str(value.type)))
    _add(graph, boxes, edges, made)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if value in made:
            edges.append((made[value], len(boxes)))
        boxes.append(Box("output", name, str(value.type), (), "", str(value.type)))
    layers = _layers(len(boxes), edges)
    return GraphView(tuple(boxes), tuple(layers), tuple(_places(layers, edges)), tuple(edges),
                     count)  # fmt: skip


def _add(
    graph: Graph, boxes: list[Box], edges: list[tuple[int, int]], made: dict[Value, int]
) -> None:
    """Appends the boxes of a graph and of its bodies, whose results lead to their node."""
    for node in graph:
        if Trait.CONSTANT in node.op.traits:
            continue
        sources = [made[v] for v in node.inputs if v is not None and v in made]
        for body in node.bodies:
            # what a body takes comes last among its inputs and among the node's operands
            for inner, outer in zip(reversed(body.inputs), reversed(node.inputs), strict=False):
                if outer is not None and outer in made:
                    made[inner] = made[outer]
            _add(body, boxes, edges, made)
            sources += [made[value] for value in body.outputs if value in made]
        edges += [(source, len(boxes)) for source in dict.fromkeys(sources)]
        for value in node.outputs:
            made[value] = len(boxes)
        boxes.append(_box(node))


def _box(node: Node) -> Box:
    op = str(node.attrs["op_type"]) if node.op is opaque else node.op.name
    defaults = node.op.defaults
    detail = [
        _short(f"{name} = {_text(item)}")
        for name, item in node.attrs.items()
        if item is not None and not _is_default(item, defaults.get(name))
    ]
    operands = []
    for idx, value in enumerate(node.inputs):
        producer = None if value is None else value.producer
        if value is not None and producer is not None and Trait.CONSTANT in producer.op.traits:
            slot = node.op.operands[min(idx, len(node.op.operands) - 1)].name
            what = f"@{producer.attrs['name']}" if producer.op is weight else "literal"
            detail.append(_short(f"{slot} = {what} {value.type}"))
        operands.append("" if value is None else str(value.name))
    detail += [f"body {i}: {count} nodes" for i, count in enumerate(_body_sizes(node))]
    types = ", ".join(str(value.type) for value in node.outputs)
    signature = f"{op}({', '.join(operands)}) {detail} {types}"
    name = node.outputs[0].name or op
    return Box(op, name, types, tuple(detail), ", ".join(node.loc[:3]), signature)


def _is_default(item: Any, default: Any) -> bool:
    if isinstance(item, np.ndarray) or isinstance(default, np.ndarray):
        return False
    return bool(item == default)


def _body_sizes(node: Node) -> list[int]:
    def count(graph: Graph) -> int:
        return sum(Trait.CONSTANT not in inner.op.traits for inner in graph.walk())

    return [count(body) for body in node.bodies]


def _text(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"{item.dtype}{list(item.shape)}"
    if isinstance(item, tuple):
        return f"[{', '.join(map(_text, item))}]"
    return str(item)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


# -- layout ---------------------------------------------------------------------------------------


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the length of the longest path to each box; inputs move down to their first use."""
    layers = [0] * count
    first_use: dict[int, int] = {}
    has_source = [False] * count
    for source, target in edges:  # in topological order of the target
        layers[target] = max(layers[target], layers[source] + 1)
        has_source[target] = True
    for source, target in edges:
        first_use[source] = min(first_use.get(source, layers[target]), layers[target])
    for box, use in first_use.items():
        if not has_source[box]:
            layers[box] = max(use - 1, 0)
    return layers


def _places(layers: Sequence[int], edges: Sequence[tuple[int, int]]) -> list[float]:
    """Returns places within layers: neighbours near each other, no two boxes on one place."""
    rows: dict[int, list[int]] = {}
    for box, layer in enumerate(layers):
        rows.setdefault(layer, []).append(box)
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for source, target in edges:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    places = [0.0] * len(layers)
    for row in rows.values():
        _spread(row, [float(i) for i in range(len(row))], places)
    order = sorted(rows)
    for _ in range(_SWEEPS):
        for sweep, near in ((order, above), (order[::-1], below)):
            for layer in sweep:
                row = rows[layer]
                wanted = [_mean([places[n] for n in near.get(box, ())], places[box]) for box in row]
                _spread(row, wanted, places)
    for layer in order:  # the last word has what feeds a box: chains run straight down
        row = rows[layer]
        wanted = [_mean([places[n] for n in above.get(box, ())], places[box]) for box in row]
        _spread(row, wanted, places)
    return [round(place, 2) for place in places]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(row: list[int], wanted: Sequence[float], places: list[float]) -> None:
    """Gives each box of a row the place nearest to the wanted one, 1 or more from the next."""
    order = sorted(range(len(row)), key=lambda i: wanted[i])
    taken: list[float] = []
    for i in order:
        taken.append(wanted[i] if not taken else max(wanted[i], taken[-1] + 1.0))
    # what pushing to the right moved on average is taken back
    shift = _mean([wanted[i] - place for i, place in zip(order, taken, strict=True)], 0.0)
    for i, place in zip(order, taken, strict=True):
        places[row[i]] = place + shift


# -- the document ---------------------------------------------------------------------------------


def statuses(before: GraphView, after: GraphView) -> tuple[list[str], list[str]]:
    """Returns for the boxes of each view whether they are `same`, `changed`, `gone` or `new`."""
    old = {_key(box): box for box in before.boxes}
    new = {_key(box): box for box in after.boxes}
    first = [_status(box, new.get(_key(box)), "gone") for box in before.boxes]
    second = [_status(box, old.get(_key(box)), "new") for box in after.boxes]
    return first, second


def _key(box: Box) -> tuple[str, str]:
    """Returns what stays the same of a box: an output and the node behind it share a name."""
    return (box.op if box.op in ("input", "output") else "node", box.name)


def _status(box: Box, other: Box | None, absent: str) -> str:
    if other is None:
        return absent
    return "same" if box.signature == other.signature else "changed"


def as_data(view: GraphView, status: Sequence[str]) -> Mapping[str, Any]:
    """Returns what the page's script reads: parallel lists, operators by number."""
    ops = sorted({box.op for box in view.boxes})
    number = {op: i for i, op in enumerate(ops)}
    return {
        "ops": ops,
        "op": [number[box.op] for box in view.boxes],
        "name": [box.name for box in view.boxes],
        "types": [box.types for box in view.boxes],
        "detail": [list(box.detail) for box in view.boxes],
        "origin": [box.origin for box in view.boxes],
        "layer": list(view.layers),
        "place": list(view.places),
        "edges": [end for edge in view.edges for end in edge],
        "status": list(status),
        "nodes": view.num_nodes,
    }
