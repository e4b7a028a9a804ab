"""Finds rotary position embedding: pairs of channels turned by angles from a table.

Two spellings cover what exporters write: `x * cos + rotate(x) * sin` with full tables, where rotate
swaps the channels of a pair and negates one; and the four products of the two channels of a pair
with half tables, joined again. The channels of a pair stand half of the rotated size apart, or side
by side. Which of these it is, is decided by evaluating the candidates (see `Prover`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.ir.dims import bind, known_equal, symbols_of
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, gathering, reshaping, slicing
from regraft.ir.opspec import Trait
from regraft.passes.analysis.rotary_tables import doubled
from regraft.passes.analysis.views import scalar_factor

_MAX_NODES = 14

_LINEAR = frozenset(
    {
        arithmetic.add, arithmetic.sub, arithmetic.neg, slicing.concat, reshaping.reshape,
        reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze,
    }
)  # fmt: skip
"""What may stand between the products and the result."""

_MOVING = frozenset(
    {
        arithmetic.neg, slicing.concat, slicing.slice_, slicing.split, reshaping.reshape,
        reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze, gathering.gather,
    }
)  # fmt: skip
"""What may stand between the input and the products."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """One rotary embedding.

    Args:
        source: What has the channels, of rank 3 or 4.
        start: The first channel of `source` that belongs to the result.
        output: The result.
        tables: The two tables, cosines first where the spelling says so.
        interleaved: Whether the channels of a pair are neighbours.
        rotary_size: The first channels that turn.
        rows: Axis of the positions.
        nodes: What computes it from the source and the tables, the last one first.
    """

    source: Value
    start: int
    output: Value
    tables: tuple[Value, Value]
    interleaved: bool
    rotary_size: int
    rows: int
    nodes: tuple[Node, ...]

    @property
    def size(self) -> int:
        """Channels of the result."""
        size = (self.output.shape or (0,))[-1]
        return size if isinstance(size, int) else 0


def find_rotary(graph: Graph) -> list[Rotary]:
    """Returns the rotary embeddings that are spelled out in a graph (bodies aside), in order.

    Of nested candidates the outermost counts. Cost: O(nodes).
    """
    found: list[Rotary] = []
    for node in graph:
        if node.op is arithmetic.add or node.op is slicing.concat or _is_stacked(node):
            rotary = _at(node)
            if rotary is not None:
                found.append(rotary)
    inner = {id(node) for each in found for node in each.nodes if node is not _last(each)}
    return [each for each in found if id(_last(each)) not in inner]


def _last(rotary: Rotary) -> Node | None:
    return rotary.output.producer


def _is_stacked(node: Node) -> bool:
    """Whether a reshape joins the last axis of a concatenation to the one before it."""
    x = node.inputs[0] if node.op is reshaping.reshape else None
    return x is not None and x.producer is not None and x.producer.op is slicing.concat


def _at(root: Node) -> Rotary | None:
    out = root.outputs[0]
    if out.rank not in (3, 4) or out.dtype is None or not out.dtype.is_float:
        return None
    turned, rest = _parts(root)
    found = _products(root, turned)
    if found is None or out.shape is None:
        return None
    products, above = found
    size = out.shape[-1] if rest is None else _channels(turned)
    split = _common(products, out)
    if split is None or not isinstance(size, int) or size % 2:
        return None
    source, tables = split
    distinct = list(dict.fromkeys(tables))
    if len(distinct) != 2:
        return None
    start = _first_channel(source, products, tables, size)
    rows = _rows(out, distinct)
    if start is None or rows is None:
        return None
    width = (distinct[0].shape or (0,))[-1]
    if width == size:
        kinds = {doubled(table) for table in distinct}
        if len(kinds) != 1 or None in kinds:
            return None
        interleaved = kinds.pop() == "interleaved"
    elif width == size // 2:
        interleaved = root.op is not slicing.concat
    else:
        return None
    nodes = (*above, *products)
    pair = (distinct[0], distinct[1])
    whole = Rotary(source, start, out, pair, interleaved, size, rows, nodes)
    if rest is not None:
        return whole if _follows(rest, whole, out) else None
    return _partial(whole) or whole


def _parts(root: Node) -> tuple[list[Value | None], Value | None]:
    """Returns the values that turned channels are, and the others that a concatenation appends."""
    if root.op is slicing.concat and len(root.inputs) == 3:
        return list(root.inputs[:2]), root.inputs[2]
    return [root.outputs[0]], None


def _channels(values: list[Value | None]) -> int:
    sizes = [None if v is None or v.shape is None else v.shape[-1] for v in values]
    return sum(size for size in sizes if isinstance(size, int))


def _products(root: Node, turned: list[Value | None]) -> tuple[list[Node], list[Node]] | None:
    """Returns the products that a result is a signed rearrangement of, and the nodes above."""
    products: list[Node] = []
    above: list[Node] = [] if root.outputs[0] in turned else [root]
    stack = list(turned)
    while stack:
        value = stack.pop()
        node = None if value is None else value.producer
        if node is None or len(above) > _MAX_NODES:
            return None
        if node.op is arithmetic.mul and scalar_factor(node) is None:
            if node not in products:
                products.append(node)
        elif node.op in _LINEAR:
            above.append(node)
            stack.extend(node.inputs[: None if node.op in _JOINS else 1])
        else:
            return None
    fits = len(products) == 2 if root.op is arithmetic.add else len(products) == 4
    return (products, above) if fits else None


_JOINS = frozenset({arithmetic.add, arithmetic.sub, slicing.concat})


def _common(products: list[Node], out: Value) -> tuple[Value, list[Value]] | None:
    """Returns the nearest value that one operand of every product is made of, and the others."""
    sides = [[_origins(value) for value in node.inputs] for node in products]
    shared: dict[Value, int] | None = None
    for pair in sides:
        both = {**pair[0], **pair[1]}
        if shared is None:
            shared = both
        else:
            shared = {v: depth + both[v] for v, depth in shared.items() if v in both}
    for x in sorted(shared or {}, key=lambda v: (shared or {})[v]):
        if not _has_channels_of(x, out):
            continue
        tables = []
        for node, pair in zip(products, sides, strict=True):
            if (x in pair[0]) == (x in pair[1]):
                break
            table = node.inputs[0 if x in pair[1] else 1]
            if table is None:
                break
            tables.append(table)
        else:
            # the product of the channels as they are holds the cosines, that of the turned ones
            # the sines
            if len(products) == 2 and _is_turned(products[0], tables[0]):
                tables.reverse()
            return x, tables
    return None


def _is_turned(node: Node, table: Value) -> bool:
    """Whether the other operand of a product is put together from channels."""
    value = node.inputs[0] if node.inputs[1] is table else node.inputs[1]
    made = None if value is None else value.producer
    while made is not None and made.op is reshaping.reshape and made.inputs[0] is not None:
        made = made.inputs[0].producer
    return made is not None and made.op is slicing.concat


def _has_channels_of(x: Value, out: Value) -> bool:
    """Whether x has the axes of the result, the last one possibly longer."""
    if x.shape is None or out.shape is None or len(x.shape) != len(out.shape):
        return False
    last = x.shape[-1]
    return (
        isinstance(last, int)
        and all(known_equal(a, b) for a, b in zip(x.shape[:-1], out.shape[:-1], strict=True))
        and isinstance(out.shape[-1], int)
        and last >= out.shape[-1]
    )


def _first_channel(
    source: Value, products: list[Node], tables: list[Value], size: int
) -> int | None:
    """Returns the first of the `size` consecutive channels that the products are made of."""
    known = set(tables)
    used: set[int] = set()
    for node in products:
        for value in node.inputs:
            if value is None or value in known:
                continue
            labels = _labels(value, source)
            if labels is None:
                return None
            used |= labels
    start = min(used, default=0)
    return start if used == set(range(start, start + size)) else None


def _labels(value: Value, source: Value) -> set[int] | None:
    """Returns the channels of `source` in a value, found by moving an array of labels."""
    nodes: dict[Node, None] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        node = current.producer
        if current is source or node is None or node in nodes:
            continue
        if Trait.CONSTANT not in node.op.traits and node.op not in _MOVING:
            return None
        nodes[node] = None
        stack.extend(v for v in node.inputs if v is not None)
    values = [source, *(v for node in nodes for v in node.outputs)]
    env = {s.name: 1 for v in values for s in symbols_of(v.shape or ())}
    shape = tuple(bind(dim, env) for dim in source.shape or ())
    if not all(isinstance(dim, int) for dim in shape):
        return None
    sizes = tuple(int(dim) for dim in shape if isinstance(dim, int))
    known: dict[Value, Any] = {source: np.broadcast_to(np.arange(1.0, sizes[-1] + 1), sizes)}
    for node in sorted(nodes, key=lambda node: node.order):
        operands = [None if v is None else known[v] for v in node.inputs]
        try:
            known.update(zip(node.outputs, evaluate_node(node, operands, env), strict=True))
        except (RegraftError, ValueError):
            return None  # the sizes are no multiples of what the graph divides them by
    return {int(label) - 1 for label in np.unique(np.abs(known[value]))}


def _origins(value: Value | None) -> dict[Value, int]:
    """Returns the values that a value is a rearrangement of, with their distance."""
    found: dict[Value, int] = {}
    stack = [(value, 0)]
    while stack and len(found) < _MAX_NODES:
        current, depth = stack.pop(0)
        if current is None or current in found:
            continue
        found[current] = depth
        node = current.producer
        if node is not None and node.op in _MOVING:
            count = len(node.inputs) if node.op is slicing.concat else 1
            stack.extend((v, depth + 1) for v in node.inputs[:count])
    return found


def _rows(x: Value, tables: list[Value]) -> int | None:
    """Returns the axis of x along which the angles change; both tables agree."""
    rank = x.rank or 0
    rows: int | None = None
    for table in tables:
        shape = table.shape
        if shape is None or len(shape) > rank or len(shape) < 2:
            return None
        lead = rank - len(shape)
        own = [i + lead for i, dim in enumerate(shape[:-1]) if dim != 1]
        # besides the positions, angles may differ between the sequences of a batch
        own = [axis for axis in own if axis > 0] or own
        if len(own) > 1 or (rank == 4 and own == [0]):
            return None
        axis = own[0] if own else rank - 2
        if rows is not None and axis != rows:
            return None
        rows = axis
    return rows


def _partial(whole: Rotary) -> Rotary | None:
    """Returns the embedding of all channels of which only the first turn, or None."""
    users = whole.output.users
    if whole.output.num_uses != 1 or len(users) != 1 or users[0].op is not slicing.concat:
        return None
    joined = users[0]
    out = joined.outputs[0]
    if len(joined.inputs) != 2 or joined.inputs[0] is not whole.output or out.shape is None:
        return None
    rest, last = joined.inputs[1], len(out.shape) - 1
    if rest is None or joined.attrs["axis"] % (last + 1) != last:
        return None
    if not _follows(rest, whole, out):
        return None
    return replace(whole, output=out, nodes=(joined, *whole.nodes))


def _follows(rest: Value, whole: Rotary, out: Value) -> bool:
    """Whether a value is the channels of the source from the turned ones on."""
    total, size = (out.shape or (None,))[-1], whole.rotary_size
    first = whole.start + size
    return isinstance(total, int) and _labels(rest, whole.source) == set(
        range(first, first + total - size)
    )
