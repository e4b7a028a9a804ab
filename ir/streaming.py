"""Matrix products with a memory-mapped weight, read from its file block by block.

Reading through the map would make every page of the weight resident and cost a page fault each;
one small buffer is filled by plain reads instead.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from regraft.ir.errors import InputError

Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 1 << 20
_MIN_BYTES = 1 << 22


def is_streamed(b: Array) -> bool:
    """Returns whether the right operand is a mapped matrix large enough to be read in blocks."""
    return (
        b.ndim == 2
        and b.nbytes >= _MIN_BYTES
        and (b.flags.c_contiguous or b.flags.f_contiguous)
        and _map_of(b) is not None
    )


def matmul_streamed(a: Array, b: Array) -> Array:
    """Returns a @ b, reading `b` in blocks of 1 MiB.

    Args:
        a: `f[*, K]`.
        b: `f[K, N]`, mapped; a transposed view is fine.

    Raises:
        InputError: When the file was truncated since it was mapped.
    """
    base = _map_of(b)
    if base is None or base.filename is None:
        raise AssertionError("the operand is not mapped")
    out = np.zeros((*a.shape[:-1], b.shape[1]), np.result_type(a, b))
    rows, flat = a.reshape(-1, a.shape[-1]), out.reshape(-1, b.shape[1])
    by_rows = b.flags.c_contiguous
    stored = b if by_rows else b.T  # as the file has it
    step = max(1, _BLOCK_BYTES // (stored.shape[1] * b.itemsize))
    buffer = np.empty((min(step, stored.shape[0]), stored.shape[1]), b.dtype)
    with open(base.filename, "rb", buffering=0) as file:
        file.seek(base.offset + _address(stored) - _address(base))
        for start in range(0, stored.shape[0], step):
            block = buffer[: min(step, stored.shape[0] - start)]
            if not fill(file, block.reshape(-1).view(np.uint8).data):
                raise InputError("an external data file was truncated while it was read")
            if by_rows:
                flat += rows[:, start : start + step] @ block
            else:
                flat[:, start : start + step] = rows @ block.T
    return out


def fill(file: BinaryIO, part: memoryview) -> bool:
    """Reads as many bytes as a buffer has; returns False where the file ends before."""
    while part:
        got = file.readinto(part)  # type: ignore[attr-defined]  # every file has it
        if not got:
            return False
        part = part[got:]
    return True


def _map_of(array: Array) -> np.memmap[Any, Any] | None:
    """Returns the memmap that owns the mapping, whose `offset` is that of its first byte."""
    owner: np.memmap[Any, Any] | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            owner = base
        base = base.base
    return owner


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
