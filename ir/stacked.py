"""Weights made entry by entry of their first axis, each time they are read.

Experts are copies of a block, each perhaps drawn anew in part: eight times a checkpoint would not
fit into memory, one expert's matrix does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.types import DType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class StackedWeight:
    """A weight whose entries along the first axis are made by a function.

    Args:
        dtype: Element type.
        shape: Sizes; the first one counts the entries.
        entry: Makes entry i, `dtype[*shape[1:]]`; the same every time.
        made_from: Names of the checkpoint tensors that entries are made of.
    """

    dtype: DType
    shape: tuple[int, ...]
    entry: Callable[[int], Array]
    made_from: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""
        return self.dtype.nbytes(math.prod(self.shape))

    def numpy(self) -> Array:
        """Makes the whole tensor."""
        array = np.empty(self.shape, self.dtype.numpy)
        for idx, entry in enumerate(self.entries()):
            array[idx] = entry
        return array

    def entries(self) -> Iterator[Array]:
        """Makes one entry after the other."""
        return map(self.entry, range(self.shape[0]))
