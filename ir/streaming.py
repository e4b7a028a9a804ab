"""Matrix products with a memory-mapped weight, block by block, pages released as they are read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 1 << 22
_MIN_BYTES = 1 << 23


def is_streamed(b: Array) -> bool:
    """Returns whether the right operand is a mapped matrix large enough to be read in blocks."""
    return b.ndim == 2 and b.nbytes >= _MIN_BYTES and _map_of(b) is not None and (
        b.flags.c_contiguous or b.flags.f_contiguous
    )


def matmul_streamed(a: Array, b: Array) -> Array:
    """Returns a @ b, reading `b` in blocks of 4 MiB.

    Args:
        a: `f[*, K]`.
        b: `f[K, N]`, mapped; a transposed view is fine.
    """
    out = np.zeros((*a.shape[:-1], b.shape[1]), np.result_type(a, b))
    rows = a.reshape(-1, a.shape[-1])
    flat = out.reshape(-1, b.shape[1])
    mapped = _map_of(b)
    if b.flags.c_contiguous:
        step = max(1, _BLOCK_BYTES // (b.shape[1] * b.itemsize))
        for start in range(0, b.shape[0], step):
            flat += rows[:, start : start + step] @ np.asarray(b[start : start + step])
            _release(mapped)
    else:
        step = max(1, _BLOCK_BYTES // (b.shape[0] * b.itemsize))
        for start in range(0, b.shape[1], step):
            flat[:, start : start + step] = rows @ np.asarray(b[:, start : start + step])
            _release(mapped)
    return out


def _map_of(array: Array) -> mmap.mmap | None:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            found = getattr(base, "_mmap", None)
            if isinstance(found, mmap.mmap):
                return found
        base = getattr(base, "base", None)
    return None


def _release(mapped: mmap.mmap | None) -> None:
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # read-only pages: the file gives them again
