"""Quotients of sums of values and of weights: what linear and hybrid attention end in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.dims import DimLike, known_equal
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, cast, fill, linalg, logical, repeating, reshaping, slicing
from regraft.ir.types import DType

_MOST = 600
"""Nodes between the values of keys and the quotient."""
_MOVES = (reshaping.reshape, reshaping.transpose, slicing.slice_, reshaping.unsqueeze, cast.cast)
_SPREADS = (*_MOVES, repeating.expand)

Parts = tuple[Value, ...]
"""Tensors that are joined along the channels."""


@dataclass(frozen=True, slots=True)
class Quotient:
    """Values over weights.

    Attributes:
        node: The division.
        sums: [B, H, S, E + 1].
        line: Where values and what makes them weights are lined up, [B, K, T, .. + E + 1].
        epsilon: Joins the weights.
    """

    node: Node
    sums: Value
    line: Node
    epsilon: float

    @property
    def shape(self) -> tuple[DimLike, ...]:
        """[B, H, S, E]."""
        return self.node.output.shape or ()

    @property
    def kv_heads(self) -> DimLike:
        """The heads of keys and values."""
        return (self.line.output.shape or ())[1]

    @property
    def parts(self) -> tuple[Parts, Parts]:
        """Keys and features, none in linear attention, and values."""
        found = split(self.line.inputs[:-1], width(self.node.output))
        assert found is not None, "a line has values"
        return found


def quotient_of(node: Node) -> Quotient | None:
    """Returns what a division is, None where it is no sum of values over one of weights."""
    above, below = node.inputs
    epsilon = 0.0
    if below is not None and below.producer is not None and below.producer.op is arithmetic.add:
        for x, other in permutations(below.producer.inputs):
            least = constant_of(other)
            if least is not None and least.size == 1:
                below, epsilon = x, float(least.reshape(()))
    values, weights = _columns(above), _columns(below)
    if values is None or weights is None or values[0] is not weights[0]:
        return None
    sums, first, last = values
    if first != 0 or weights[1:] != (last, last + 1) or (sums.shape or ())[3] != last + 1:
        return None
    line = _line(sums, last)
    return None if line is None else Quotient(node, sums, line, epsilon)


def _columns(x: Value | None) -> tuple[Value, int, int] | None:
    """Returns the tensor of rank 4 that columns are cut from, and which."""
    node = None if x is None else x.producer
    if node is None or node.op is not slicing.slice_ or node.attrs.get("axes") != (3,):
        return None
    of, (start,), (end,) = node.inputs[0], node.attrs["starts"], node.attrs["ends"]
    if of is None or of.rank != 4 or not isinstance(start, int) or not isinstance(end, int):
        return None
    return of, start, end


def _line(sums: Value, columns: int) -> Node | None:
    """Returns the nearest node that joins values and ones, and keys and features before them."""
    seen: dict[Node, None] = {}
    row = [sums]
    while row and len(seen) < _MOST:
        above = []
        for value in row:
            node = value.producer
            if node is None or node in seen:
                continue
            seen[node] = None
            if _is_line(node, columns):
                return node
            above += [x for x in node.inputs if x is not None]
        row = above
    return None


def _is_line(node: Node, columns: int) -> bool:
    if node.op is not slicing.concat or node.attrs["axis"] != 3 or width(node.inputs[-1]) != 1:
        return False
    return split(node.inputs[:-1], columns) is not None


def width(x: Value | None) -> int:
    """Returns the channels of a tensor of rank 4, 0 where they are not known."""
    size = 0 if x is None or x.rank != 4 else (x.shape or (0,))[-1]
    return size if isinstance(size, int) else 0


def split(values: Sequence[Value | None], columns: int) -> tuple[Parts, Parts] | None:
    """Returns tensors in two groups, of which the second has so many columns; None if none has."""
    found = [x for x in values if x is not None]
    for number in range(len(found)):
        if sum(map(width, found[number:])) == columns:
            return tuple(found[:number]), tuple(found[number:])
    return None


def window_of(place: Quotient) -> int:
    """Returns how many empty positions stand before the line."""
    for node in place.line.output.users:
        if node.op is slicing.concat and node.attrs["axis"] == 2:
            first = node.inputs[0]
            rows = 0 if first is None else (first.shape or ())[2]
            if _is_filled(first, 0) and isinstance(rows, int):
                return rows
    return 0


def gains_of(place: Quotient) -> Iterator[Value]:
    """Yields numbers of every head that join the region."""
    heads = place.shape[1]
    for value in _frontier(place):
        if value.shape == (1, heads, 1, 1) and value.dtype is not DType.BOOL:
            yield value


def condition_of(present: Value | None) -> Value | None:
    """Returns the condition that ones are made of, None for ones everywhere."""
    if present is None or _is_filled(present, 1):
        return None
    x: Value | None = present
    while x is not None and x.dtype is not DType.BOOL:
        node = x.producer
        x = node.inputs[0] if node is not None and node.op in _SPREADS else None
    return x


def unmasked(x: Value, seen: Value | None) -> Value:
    """Returns what was multiplied by the condition."""
    node = x.producer
    if seen is None or node is None or node.op is not arithmetic.mul:
        return x
    for inner, factor in permutations(node.inputs):
        if inner is not None and condition_of(factor) is seen:
            return inner
    return x


def _frontier(place: Quotient) -> list[Value]:
    """Returns what joins the values on their way to the quotient."""
    inside: dict[Node, None] = {}
    stack = [place.line.output]
    while stack and len(inside) < _MOST:
        for node in stack.pop().users:
            if node not in inside and node.order <= place.node.order:
                inside[node] = None
                if place.sums not in node.outputs:
                    stack += node.outputs
    return [
        x
        for node in inside
        for x in node.inputs
        if x is not None and x is not place.line.output and x.producer not in inside
    ]


def leaves_of(place: Quotient) -> Iterator[tuple[Value, float]]:
    """Yields tensors of one row per token that decide weights, and what multiplies them."""
    heads, rows = (place.shape[1], place.kv_heads), (place.shape[2], (
        place.line.output.shape or ())[2])  # fmt: skip
    seen: dict[Value, None] = {}
    stack = [(value, 1.0) for value in _frontier(place) if not is_constant(value)]
    while stack:
        value, factor = stack.pop()
        node, shape = value.producer, value.shape or ()
        if len(shape) == 4 and shape[1] in heads and any(known_equal(shape[2], n) for n in rows):
            yield value, factor
            continue
        if value in seen or node is None or len(seen) > _MOST:
            continue
        seen[value] = None
        if node.op in _MOVES or node.op is slicing.concat:
            rest = [x for x in node.inputs if x is not None and not _is_filled(x, 0)]
            stack += [(x, factor) for x in rest[: 1 if node.op in _MOVES else 2]]
        elif node.op is linalg.matmul or node.op is logical.where:
            stack += [(x, factor) for x in node.inputs if x is not None and not is_constant(x)]
        elif node.op is arithmetic.mul:
            for x, other in permutations(node.inputs):
                number = constant_of(other)
                if x is not None and number is not None and number.size == 1:
                    stack.append((x, factor * float(number.reshape(()))))


def _is_filled(x: Value | None, number: float) -> bool:
    """Returns whether a tensor is one number everywhere."""
    node = None if x is None else x.producer
    if node is not None and node.op is fill.constant_of_shape:
        return bool((node.attrs["value"] == number).all())
    array = None if x is None or not is_constant(x) else constant_of(x)
    return array is not None and bool((array == number).all())
