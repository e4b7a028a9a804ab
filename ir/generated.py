"""Weights that are made rather than stored: one repeated element, or seeded random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.types import DType, dtype_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class SplatWeight:
    """A tensor whose elements are all equal; takes the memory of one element.

    Args:
        item: The element, a rank-0 array.
        shape: Sizes.
    """

    item: Array
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        """Element type."""
        return dtype_of(self.item)

    @property
    def nbytes(self) -> int:
        """Packed size in bytes of the whole tensor."""
        return self.dtype.nbytes(math.prod(self.shape))

    def numpy(self) -> Array:
        """Returns a read-only broadcast view."""
        return np.broadcast_to(self.item, self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class RandomWeight:
    """Reproducible random numbers, for tests and benchmarks.

    Floats are normal with deviation `scale`, integers uniform in a small range around zero (from
    zero when unsigned), booleans even.

    Args:
        seed: Equal seeds, types and shapes give equal tensors.
        dtype: Element type.
        shape: Sizes.
        scale: Standard deviation of floats.
    """

    seed: int
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""
        return self.dtype.nbytes(math.prod(self.shape))

    def numpy(self) -> Array:
        """Makes the tensor anew at each call."""
        rng = np.random.default_rng(self.seed)
        dtype = self.dtype
        if dtype is DType.BOOL:
            return rng.integers(0, 2, self.shape).astype(np.bool_)
        if dtype.is_integer:
            half = min(1 << (dtype.bits - 1), 8)
            low, high = (-half, half) if dtype.value.startswith("i") else (0, 2 * half)
            return rng.integers(low, high, self.shape).astype(dtype.numpy)
        # drawn in f32 so that large tensors cost four bytes per element and not eight
        wide = np.float64 if dtype is DType.F64 else np.float32
        array: Array = rng.standard_normal(self.shape, wide)
        array *= wide(self.scale)
        return array.astype(dtype.numpy, copy=False)
