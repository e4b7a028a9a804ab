"""Where the elements of a derived weight come from, for mapping checkpoints both ways."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.errors import UnsupportedError
from regraft.ir.steps import (
    Concat,
    Gather,
    Literal,
    Permute,
    Reshape,
    Slice,
    Source,
    Transpose,
    Tree,
    describe,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The part of a derived weight that comes from one source.

    Args:
        source: Name of the source.
        shape: Shape of the source.
        target: Row-major positions in the derived weight, i64[N].
        positions: Their row-major positions in the source, i64[N].
    """

    source: str
    shape: tuple[int, ...]
    target: Array
    positions: Array


def origins_of(tree: Tree) -> list[Origin]:
    """Returns one origin per source of a tree that only moves elements.

    Cost: two i64 per element of the derived weight.

    Raises:
        UnsupportedError: When a step changes values or repeats positions, naming the step.
    """
    found: list[Source] = []
    owner, position = _trace(tree, found)
    owner, position = owner.reshape(-1), position.reshape(-1)
    origins = []
    for idx, source in enumerate(found):
        target = np.flatnonzero(owner == idx)
        origins.append(Origin(source.name, source.weight.shape, target, position[target]))
    return origins


def restore(origin: Origin, source: Array, derived: Array) -> None:
    """Writes the derived weight's elements back to their places in `source`, in place."""
    source.reshape(-1)[origin.positions] = derived.reshape(-1)[origin.target]


def _trace(tree: Tree, found: list[Source]) -> tuple[Array, Array]:
    """Returns, for every element, the index of its source in `found` and its position there."""
    match tree:
        case Source(_, weight):
            if tree not in found:
                found.append(tree)
            ids = np.arange(math.prod(weight.shape)).reshape(weight.shape)
            return np.full(weight.shape, found.index(tree), np.int32), ids
        case Slice(x, axis, start, stop, step):
            part = (*(slice(None),) * axis, slice(start, stop, step))
            owner, ids = _trace(x, found)
            return owner[part], ids[part]
        case Gather(x, axis, order) | Permute(x, axis, order):
            if len(set(order)) != len(order):
                raise UnsupportedError(
                    f"the steps cannot be inverted: gather repeats positions of axis {axis}"
                )
            owner, ids = _trace(x, found)
            return np.take(owner, order, axis), np.take(ids, order, axis)
        case Transpose(x, perm):
            owner, ids = _trace(x, found)
            return owner.transpose(perm), ids.transpose(perm)
        case Reshape(x, shape):
            owner, ids = _trace(x, found)
            return owner.reshape(shape), ids.reshape(shape)
        case Concat(xs, axis):
            parts = [_trace(x, found) for x in xs]
            return (
                np.concatenate([owner for owner, _ in parts], axis),
                np.concatenate([ids for _, ids in parts], axis),
            )
        case Literal():
            shape = describe(tree)[1]
            return np.full(shape, -1, np.int32), np.zeros(shape, np.int64)
        case _:
            raise UnsupportedError(
                f"the steps cannot be inverted: {type(tree).__name__.lower()} changes values"
            )
