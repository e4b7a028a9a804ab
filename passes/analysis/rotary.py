"""Finds rotary position embedding: pairs of channels turned by angles from a table.

Two spellings cover what exporters write: `x * cos + rotate(x) * sin` with full tables, where rotate
swaps the channels of a pair and negates one; and the four products of the two channels of a pair with
half tables, joined again. The channels of a pair stand half of the rotated size apart, or side by
side. Which of these it is, is decided by evaluating the candidates (see `Prover`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import DimLike, exactdiv, known_equal
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, cast, functions, gathering, reshaping, slicing
from regraft.passes.analysis.views import leaves, scalar_factor, view_of

_MAX_NODES = 14
_MAX_TABLE_BYTES = 1 << 24

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

_THROUGH = frozenset({functions.cos, functions.sin, cast.cast})


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """One rotary embedding.

    Args:
        x: What is turned, of rank 3 or 4.
        output: The result, of the same shape.
        tables: The two tables, cosines first where the spelling says so.
        interleaved: Whether the channels of a pair are neighbours.
        rotary_size: The first channels that turn, None for all.
        rows: Axis of the positions in `x`.
        nodes: What computes it from x and the tables.
    """

    x: Value
    output: Value
    tables: tuple[Value, Value]
    interleaved: bool
    rotary_size: DimLike | None
    rows: int
    nodes: tuple[Node, ...]


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
    found = _products(root)
    if found is None:
        return None
    products, above = found
    split = _common(products, out)
    if split is None:
        return None
    x, tables = split
    distinct = list(dict.fromkeys(tables))
    if len(distinct) != 2 or x.shape is None:
        return None
    rows = _rows(x, distinct)
    size = x.shape[-1]
    if rows is None or not isinstance(size, int) or size % 2:
        return None
    width = (distinct[0].shape or (0,))[-1]
    if width == size:
        kinds = {doubled(table) for table in distinct}
        if len(kinds) != 1 or None in kinds:
            return None
        interleaved = kinds.pop() == "interleaved"
    elif known_equal(width, size // 2):
        interleaved = root.op is not slicing.concat
    else:
        return None
    nodes = (*above, *products)
    whole = Rotary(x, out, (distinct[0], distinct[1]), interleaved, None, rows, nodes)
    return _partial(whole) or whole


def _products(root: Node) -> tuple[list[Node], list[Node]] | None:
    """Returns the products that a result is a signed rearrangement of, and the nodes above."""
    products: list[Node] = []
    above: list[Node] = []
    stack: list[Value | None] = [root.outputs[0]]
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
        if x.shape != out.shape:
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
            # the product of x itself comes first: its table holds the cosines
            direct = [x in node.inputs for node in products]
            if len(products) == 2 and direct == [False, True]:
                tables.reverse()
            return x, tables
    return None


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
    cut = whole.x.producer
    if cut is None or whole.x.index or whole.output.num_uses != 1:
        return None
    users = whole.output.users
    if len(users) != 1 or users[0].op is not slicing.concat or len(users[0].inputs) != 2:
        return None
    joined = users[0]
    first, rest = joined.inputs
    source, size = cut.inputs[0], (whole.x.shape or (0,))[-1]
    if first is not whole.output or rest is None or source is None or source.shape is None:
        return None
    if joined.outputs[0].shape != source.shape or not _starts_at(whole.x, source, 0):
        return None
    if not _starts_at(rest, source, size) or joined.attrs["axis"] % len(source.shape) != len(
        source.shape
    ) - 1:
        return None
    nodes = (joined, *whole.nodes, cut)
    return Rotary(
        source, joined.outputs[0], whole.tables, whole.interleaved, size, whole.rows, nodes
    )


def _starts_at(part: Value, source: Value, start: DimLike) -> bool:
    """Whether `part` is the channels of `source` from `start` on."""
    node = part.producer
    if node is None or node.inputs[0] is not source or source.shape is None:
        return False
    last = len(source.shape) - 1
    if node.op is slicing.slice_:
        axes, starts, steps = (node.static(n) for n in ("axes", "starts", "steps"))
        return (
            isinstance(axes, tuple)
            and [axis % (last + 1) for axis in axes] == [last]
            and starts == (start,)
            and steps in ((1,), None)
        )
    if node.op is slicing.split and node.attrs["axis"] % (last + 1) == last:
        sizes = [(value.shape or (0,))[-1] for value in node.outputs[: part.index]]
        return all(isinstance(size, int) for size in sizes) and sum(sizes) == start
    return False


# -- tables -----------------------------------------------------------------------------------------


def doubled(table: Value) -> str | None:
    """Returns how a full table repeats its half: `half`, `interleaved`, or None for not at all."""
    for value in _ways_up(table):
        node = value.producer
        if node is not None and node.op is slicing.concat and len(node.inputs) == 2:
            is_last = node.attrs["axis"] % (value.rank or 1) == (value.rank or 1) - 1
            return "half" if is_last and node.inputs[0] is node.inputs[1] else None
        array = constant_of(value, _MAX_TABLE_BYTES) if is_constant(value) else None
        if array is not None and array.ndim and array.shape[-1] % 2 == 0:
            half = array.shape[-1] // 2
            if np.array_equal(array[..., :half], array[..., half:]):
                return "half"
            return "interleaved" if np.array_equal(array[..., ::2], array[..., 1::2]) else None
        if value.shape is None:
            return None
        view = view_of(value)
        last = leaves(view.axes[-1]) if view.axes else []
        own = view.atoms()
        if len(last) > 1 and last[-1] not in own and last[-1].size == 2:
            return "interleaved"
        if len(last) > 1 and last[0] not in own and last[0].size == 2:
            return "half"
    return None


def _ways_up(table: Value) -> Iterator[Value]:
    """Yields what a table is computed from, position by position in its last axis."""
    value: Value | None = table
    while value is not None:
        yield value
        value = _source(value)


def _source(value: Value) -> Value | None:
    """Returns the operand whose last axis runs over the same channels, or None."""
    node = value.producer
    if node is None or value.shape is None:
        return None
    x = node.inputs[0] if node.inputs else None
    if node.op in _THROUGH:
        return x
    factor = scalar_factor(node)
    if factor is not None:
        return node.inputs[factor[0]]
    if x is None or x.shape is None or not x.shape or not value.shape:
        return None
    if node.op is reshaping.reshape and known_equal(x.shape[-1], value.shape[-1]):
        return x
    if node.op is gathering.gather and node.attrs["axis"] % len(x.shape) != len(x.shape) - 1:
        return x
    if node.op is slicing.slice_:
        axes = node.static("axes")
        rank = len(x.shape)
        if isinstance(axes, tuple) and all(axis % rank != rank - 1 for axis in axes):
            return x
    return None


def half_table(b: Builder, table: Value, interleaved: bool) -> Value:
    """Builds the half of a full table that says it all, as far up as that is cheap."""
    node = table.producer
    if node is None or table.shape is None:
        raise AssertionError("the table was looked at before")
    size = exactdiv(table.shape[-1], 2)
    if node.op is slicing.concat and node.inputs[0] is node.inputs[1] and not interleaved:
        return node.inputs[0]  # type: ignore[return-value]  # an operand of concat is present
    source = _source(table)
    if source is not None and doubled(source) is not None:
        half = half_table(b, source, interleaved)
        if node.op is reshaping.reshape:
            return b.op(reshaping.reshape, half, shape=(*table.shape[:-1], size))
        operands = [half if value is source else value for value in node.inputs]
        return b.op(node.op, *operands, **node.attrs)
    axis, step = (table.rank or 1) - 1, 2 if interleaved else 1
    end = table.shape[-1] if interleaved else size
    return b.op(slicing.slice_, table, starts=(0,), ends=(end,), axes=(axis,), steps=(step,))
