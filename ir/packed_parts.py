"""The packed bytes of a weight, part by part, and samples of them: for writers and hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError
from regraft.ir.matrix_rows import rows_of
from regraft.ir.stacked import StackedWeight
from regraft.ir.streaming import fill
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight, pack

_SAMPLE_BYTES = 256

_WHOLE_BYTES = 1 << 12
"""Computed weights up to this size are sampled as they are."""

_PART_BYTES = 1 << 18
"""Fits the second-level cache, where what was read is still found when it is written."""


def packed_parts(weight: Weight) -> Iterator[memoryview]:
    """Yields the little-endian packed bytes of a weight, in order.

    A part lives until the next one is asked for. Of a weight in a file a small buffer is in
    memory: reading through a map would count every page as resident until the map is gone. Of a
    computed one a few rows are.

    Raises:
        InputError: When the file was changed or truncated since the weight was made.
    """
    match weight:
        case MappedWeight():
            yield from _file_parts(weight)
        case DerivedWeight() if weight.shape and weight.dtype.bits >= 8:
            for _, block in weight.blocks():
                yield memoryview(pack(block, weight.dtype))
        case StackedWeight() if weight.dtype.bits >= 8:
            for entry in weight.entries():
                yield memoryview(pack(entry, weight.dtype))
        case ArrayWeight() if weight.dtype.bits >= 8 and weight.array.flags.c_contiguous:
            yield weight.array.reshape(-1).view(np.uint8).data
        case _:
            yield memoryview(pack(weight.numpy(), weight.dtype))


def _file_parts(weight: MappedWeight) -> Iterator[memoryview]:
    weight.check_readable()
    left = weight.nbytes
    buffer = memoryview(bytearray(min(left, _PART_BYTES)))
    with weight.path.open("rb", buffering=0) as file:
        file.seek(weight.offset)
        while left:
            part = buffer[: min(left, _PART_BYTES)]
            if not fill(file, part):
                raise InputError(f"`{weight.path}` was truncated while it was read")
            yield part
            left -= len(part)


def sample_of(weight: Weight) -> bytes:
    """Returns packed bytes at a few places: weights of equal content and kind have the same ones.

    Little is read: a weight in a file is not mapped, a computed one not computed but for two rows.
    Of a transposed matrix they are those of what it is the transpose of.

    Raises:
        InputError: When the file is not what it was when the model was loaded.
    """
    if isinstance(weight, DerivedWeight) and weight.nbytes > _WHOLE_BYTES:
        rows = rows_of(weight) if len(weight.shape) == 2 else None
        if rows is not None and rows.transposed:
            return sample_of(rows.weight)
        return b"".join(pack(_row(weight, idx), weight.dtype) for idx in (0, weight.shape[0] - 1))
    last = max(weight.nbytes - _SAMPLE_BYTES, 0)
    places = (0, last // 3, last // 2, last)
    if isinstance(weight, MappedWeight):
        weight.check_readable()
        with weight.path.open("rb", buffering=0) as file:
            size = min(_SAMPLE_BYTES, weight.nbytes)
            return b"".join(
                os.pread(file.fileno(), size, weight.offset + start) for start in places
            )
    array = weight.numpy()
    if weight.dtype.bits < 8 or not array.flags.c_contiguous:
        data = memoryview(pack(array, weight.dtype))
    else:
        data = array.reshape(-1).view(np.uint8).data
    return b"".join(data[start : start + _SAMPLE_BYTES] for start in places)


def digest_of(weight: Weight) -> bytes:
    """Returns a digest of the content: of a transposed matrix, of what it is the transpose of."""
    rows = rows_of(weight) if len(weight.shape) == 2 else None
    is_transposed = rows is not None and rows.transposed
    digest = hashlib.blake2b(b"transposed" if is_transposed else b"", digest_size=16)
    for part in packed_parts(rows.weight if rows is not None else weight):
        digest.update(part)
    return digest.digest()


def _row(weight: DerivedWeight, idx: int) -> np.ndarray[Any, Any]:
    """Returns the start of a row, of whole bytes."""
    size = weight.shape[-1] if len(weight.shape) > 1 else 1
    rest = [(0, size) for size in weight.shape[1:-1]]
    ends = [(0, min(size, _SAMPLE_BYTES))] if len(weight.shape) > 1 else []
    return weight.read(((idx, idx + 1), *rest, *ends))
