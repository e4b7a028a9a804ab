"""What a pruned module kept of the checkpoint that it was loaded from, in the checkpoint's terms.

Weights of a module are derived: transposed, joined, renamed. Their origins lead back to the names
and positions of the original tensors, so that a plan cuts checkpoints of the library's own layout,
and trained weights of the small model return to their places in the large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.derive import derive
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.origins import Relation, origins_of
from regraft.ir.weights import WeightStore

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class KeptTensor:
    """What is kept of one tensor of a checkpoint.

    Args:
        name: Its name there.
        shape: Its shape there.
        kept: Kept positions of every axis, ascending, i64[K] each.
    """

    name: str
    shape: tuple[int, ...]
    kept: tuple[Array, ...]

    @property
    def new_shape(self) -> tuple[int, ...]:
        """Its shape after pruning."""
        return tuple(len(positions) for positions in self.kept)

    def take(self, array: Array) -> Array:
        """Returns the kept part of a tensor of the original shape.

        Raises:
            InputError: When it has another shape.
        """
        if array.shape != self.shape:
            raise InputError(
                f"`{self.name}` has shape {list(array.shape)}, the plan was made for "
                f"{list(self.shape)}",
                hint="a plan applies to checkpoints of the architecture it was made for",
            )
        return array[np.ix_(*self.kept)] if self.kept else array

    def put(self, pruned: Array, original: Array) -> None:
        """Writes a pruned tensor to its places in the original one, in place.

        Raises:
            InputError: When a shape is not the plan's.
        """
        if pruned.shape != self.new_shape or original.shape != self.shape:
            raise InputError(
                f"`{self.name}`: {list(pruned.shape)} does not go into {list(original.shape)}, "
                f"the plan keeps {list(self.new_shape)} of {list(self.shape)}"
            )
        if self.kept:
            original[np.ix_(*self.kept)] = pruned
        else:
            original[...] = pruned


def kept_of_checkpoint(dense: WeightStore, pruned: WeightStore) -> dict[str, KeptTensor]:
    """Returns what pruning kept of every checkpoint tensor, aliases under their own names too.

    A position is dropped when all elements that the dense module read there are gone; what the
    module never read (further rows of a table of positions) stays.

    Args:
        dense: Weights of the module before `prune`.
        pruned: Those of the same module after it.

    Raises:
        UnsupportedError: When values of a touched tensor were folded into others, or what is left
            of it is no rectangle.

    Cost: O(elements of the weights); three i64 per element of the largest.
    """
    read: dict[str, Array] = {}
    left: dict[str, Array] = {}
    for name in dense:
        before = dense[name]
        gone = name not in pruned
        if not gone and pruned[name] is before and name not in read:
            read[name], left[name] = np.ones((2, *before.shape), np.bool_)
            continue
        touched = gone or pruned[name] is not before
        _mark(read, name, dense, touched=touched)
        if not gone:
            _mark(left, name, pruned, touched=touched)
    found = {name: _rectangle(name, seen, left.get(name)) for name, seen in read.items()}
    for alias, target in dense.aliases.items():
        if target in found:
            item = found[target]
            found[alias] = KeptTensor(alias, item.shape, item.kept)
    return found


def slice_checkpoint(
    kept: Mapping[str, KeptTensor], tensors: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns a checkpoint's tensors cut to what is kept; tensors that no plan knows stay whole.

    Raises:
        InputError: When a tensor has another shape than the plan was made for.
    """
    return {
        name: kept[name].take(array) if name in kept else array for name, array in tensors.items()
    }


def _mark(marks: dict[str, Array], name: str, store: WeightStore, *, touched: bool) -> None:
    """Marks the elements of checkpoint tensors that a weight holds."""
    for origin in origins_of(derive(name, store[name])):
        if origin.relation is Relation.MIXED and touched:
            raise UnsupportedError(
                f"`{origin.source}` has no positions in `{name}`: {origin.reason}",
                hint="prune before passes that fold weights into each other, such as `fold-norms`",
            )
        seen = marks.setdefault(origin.source, np.zeros(origin.shape, np.bool_))
        if origin.relation is Relation.MIXED:
            seen[...] = True
        else:
            seen.reshape(-1)[origin.positions] = True


def _rectangle(name: str, read: Array, left: Array | None) -> KeptTensor:
    left = np.zeros_like(read) if left is None else left
    kept = []
    for axis in range(read.ndim):
        others = tuple(i for i in range(read.ndim) if i != axis)
        kept.append(np.flatnonzero(left.any(others) | ~read.any(others)))
    expected = np.zeros_like(read)
    if kept:
        expected[np.ix_(*kept)] = True
        if not np.array_equal(expected & read, left & read):
            raise UnsupportedError(
                f"what is left of `{name}` is no rectangle of its {list(read.shape)}",
                hint="readers of one tensor keep different parts of it",
            )
    return KeptTensor(name, read.shape, tuple(kept))
