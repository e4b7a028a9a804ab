"""Where the elements of a derived weight come from, for mapping checkpoints both ways.

Every source of a tree has one of three relations to the result:

- `exact`: elements were only moved, so that both directions copy;
- `positions only`: each element follows from the one at the recorded position, by values that
  changed on the way (`w * s`, a cast to fewer bits), or stands at several places of the result;
- `mixed`: an element follows from many of the source's, so that there is no map of positions.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.errors import UnsupportedError
from regraft.ir.steps import (
    Cast,
    Concat,
    Gather,
    Literal,
    MatMul,
    Movement,
    Permute,
    Pointwise,
    Reshape,
    Slice,
    Source,
    Transpose,
    Tree,
    children,
    describe,
)

Array = np.ndarray[Any, Any]


class Relation(enum.IntEnum):
    """How elements of a derived weight follow from a source; the larger, the less is known."""

    EXACT = 0
    POSITIONS = 1
    MIXED = 2

    def __str__(self) -> str:
        return ("exact", "positions only", "mixed")[self]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The part of a derived weight that comes from one source in one way.

    Args:
        source: Name of the source.
        shape: Shape of the source.
        target: Row-major positions in the derived weight, i64[N]; empty when `mixed`.
        positions: Their row-major positions in the source, i64[N].
        relation: Whether values, positions, or neither correspond.
        reason: What keeps the relation from being exact, such as `mul changes values`, else empty.
    """

    source: str
    shape: tuple[int, ...]
    target: Array
    positions: Array
    relation: Relation
    reason: str


def origins_of(tree: Tree) -> list[Origin]:
    """Returns the origins of a tree, one or more per source, in the order of the tree.

    Cost: up to three i64 per element of the derived weight and source that meet in it.
    """
    found: list[_Found] = []
    layers = [(owner.reshape(-1), ids.reshape(-1)) for owner, ids in _trace(tree, found)]
    origins = []
    for idx, item in enumerate(found):
        if item.relation is Relation.MIXED:
            targets = [np.zeros(0, np.int64)]
            positions = targets
        else:
            targets = [np.flatnonzero(owner == idx) for owner, _ in layers]
            positions = [ids[target] for (_, ids), target in zip(layers, targets, strict=True)]
            if not any(target.size for target in targets):
                continue  # only an intermediate form of it, or cut away
        target, position = np.concatenate(targets), np.concatenate(positions)
        relation, reason = item.relation, item.reason
        if relation is Relation.EXACT and _repeats(position, item.source.weight.shape):
            relation, reason = Relation.POSITIONS, "the result repeats positions"
        source = item.source
        origins.append(Origin(source.name, source.weight.shape, target, position, relation, reason))
    return origins


def _repeats(positions: Array, shape: tuple[int, ...]) -> bool:
    seen = np.zeros(math.prod(shape), np.bool_)
    seen[positions] = True
    return int(seen.sum()) != positions.size


def restore(origin: Origin, source: Array, derived: Array) -> None:
    """Writes the derived weight's elements back to their places in `source`, in place.

    Raises:
        UnsupportedError: When the origin is not exact.
    """
    if origin.relation is not Relation.EXACT:
        raise UnsupportedError(
            f"`{origin.source}` cannot be restored: {origin.reason}",
            hint=f"the relation is `{origin.relation}`; only moved elements can be copied back",
        )
    source.reshape(-1)[origin.positions] = derived.reshape(-1)[origin.target]


@dataclass(frozen=True, slots=True)
class _Found:
    source: Source
    relation: Relation
    reason: str


_Layer = tuple[Array, Array]
"""For every element, the index of its source in the list of those found (-1 for none), and its
position there. Elements that follow from several sources have several layers."""


def _trace(tree: Tree, found: list[_Found]) -> list[_Layer]:
    if isinstance(tree, Source):
        shape = tree.weight.shape
        idx = _index(_Found(tree, Relation.EXACT, ""), found)
        return [(np.full(shape, idx, np.int32), np.arange(math.prod(shape)).reshape(shape))]
    if isinstance(tree, Literal):
        return []
    if isinstance(tree, Concat):
        return _concat(tree, found)
    if isinstance(tree, Movement):
        return [(_move(tree, a), _move(tree, b)) for a, b in _trace(tree.x, found)]
    if isinstance(tree, Pointwise):
        shape, reason = describe(tree)[1], _change(tree)
        layers = [layer for child in children(tree) for layer in _trace(child, found)]
        return [
            (
                np.broadcast_to(_weaken(owner, found, Relation.POSITIONS, reason), shape),
                np.broadcast_to(ids, shape),
            )
            for owner, ids in layers
        ]
    for child in children(tree):
        for owner, _ in _trace(child, found):
            _weaken(owner, found, Relation.MIXED, f"{_name(tree)} mixes positions")
    return []


def _move(tree: Slice | Gather | Permute | Transpose | Reshape, array: Array) -> Array:
    match tree:
        case Slice(_, axis, start, stop, step):
            return array[(*(slice(None),) * axis, slice(start, stop, step))]
        case Gather(_, axis, order) | Permute(_, axis, order):
            return np.take(array, order, axis)
        case Transpose(_, perm):
            return array.transpose(perm)
        case Reshape(_, shape):
            return array.reshape(shape)


def _concat(tree: Concat, found: list[_Found]) -> list[_Layer]:
    parts = [_trace(x, found) for x in tree.xs]
    layers = []
    for depth in range(max(map(len, parts))):
        owners, ids = [], []
        for x, part in zip(tree.xs, parts, strict=True):
            shape = describe(x)[1]
            none = np.full(shape, -1, np.int32), np.zeros(shape, np.int64)
            owner, position = part[depth] if depth < len(part) else none
            owners.append(owner)
            ids.append(position)
        layers.append((np.concatenate(owners, tree.axis), np.concatenate(ids, tree.axis)))
    return layers


def _change(tree: Pointwise) -> str:
    """Returns why values change, empty for a cast that keeps every number."""
    if isinstance(tree, Cast):
        before, after = describe(tree.x)[0], tree.dtype
        is_wider = before.is_float and after.is_float and 16 <= before.bits < after.bits
        if before is after or is_wider:
            return ""
    return f"{_name(tree)} changes values"


def _weaken(owner: Array, found: list[_Found], relation: Relation, reason: str) -> Array:
    """Returns owners that stand for the same sources in the weaker relation."""
    if not reason:
        return owner
    table = np.arange(-1, len(found), dtype=np.int32)  # indexed by owner + 1
    for idx in np.unique(owner).tolist():
        if idx >= 0 and found[idx].relation < relation:
            table[idx + 1] = _index(_Found(found[idx].source, relation, reason), found)
    return np.asarray(table[owner + 1])


def _index(item: _Found, found: list[_Found]) -> int:
    if item not in found:
        found.append(item)
    return found.index(item)


def _name(tree: Pointwise | MatMul) -> str:
    return type(tree).__name__.lower()
