"""A constant matrix, read some rows at a time in the order in which it lies.

Of a matrix in a file a few rows are in memory at any time: reading through a map of all of it
would count every page as resident until the map is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError
from regraft.ir.steps import Cast, Source, Transpose, Tree
from regraft.ir.streaming import fill
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight

Array = np.ndarray[Any, Any]

_SWAPPED = (1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class MatrixRows:
    """The rows of a matrix as they lie in its file.

    Args:
        weight: What is read.
        transposed: Whether these rows are the columns of the matrix that was asked for.
    """

    weight: Weight
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, as they lie, and their length."""
        num_rows, length = self.weight.shape
        return num_rows, length

    def read(self, first: int, stop: int) -> Array:
        """Returns the rows from `first` to before `stop`, of the weight's type; do not write to it.

        Raises:
            InputError: When the file is not what it was when the model was loaded.
        """
        return _rows(self.weight, first, stop)


def rows_of(weight: Weight) -> MatrixRows:
    """Returns the rows of a matrix: of a transposed one, those of what it is the transpose of."""
    if not isinstance(weight, DerivedWeight):
        return MatrixRows(weight, transposed=False)
    tree, transposed = _as_it_lies(weight.tree)
    if not transposed:
        return MatrixRows(weight, transposed=False)
    held = tree.weight if isinstance(tree, Source) else weight.with_tree(tree)
    return MatrixRows(held, transposed=True)


def _as_it_lies(tree: Tree) -> tuple[Tree, bool]:
    """Returns the steps without transpositions at their end, and whether an odd number was left."""
    match tree:
        case Transpose(x, perm) if perm == _SWAPPED:
            inner, transposed = _as_it_lies(x)
            return inner, not transposed
        case Cast(x, _):
            inner, transposed = _as_it_lies(x)
            return replace(tree, x=inner), transposed
        case _:
            return tree, False


def _rows(weight: Weight, first: int, stop: int) -> Array:
    if isinstance(weight, MappedWeight) and weight.dtype.bits >= 8:
        return _of_file(weight, first, stop)
    if not isinstance(weight, DerivedWeight):
        return weight.numpy()[first:stop]
    match weight.tree:
        case Source(_, held):
            return _rows(held, first, stop)
        case Cast(Source(_, held), dtype):
            return _cast(_rows(held, first, stop), dtype)
        case _:
            return weight.read(((first, stop), (0, weight.shape[1])))


@np.errstate(all="ignore")  # as the operator: what is out of range becomes Inf or NaN
def _cast(array: Array, dtype: DType) -> Array:
    return array.astype(dtype.numpy)


def _of_file(weight: MappedWeight, first: int, stop: int) -> Array:
    weight.check_readable()
    length = weight.shape[1]
    found = np.empty((max(stop - first, 0), length), weight.dtype.numpy)
    if not found.size:
        return found
    with weight.path.open("rb", buffering=0) as file:
        file.seek(weight.offset + weight.dtype.nbytes(first * length))
        if not fill(file, found.reshape(-1).view(np.uint8).data):
            raise InputError(
                f"`{weight.path}` was truncated while it was read",
                hint="load the model again when the file is whole",
            )
    return found
