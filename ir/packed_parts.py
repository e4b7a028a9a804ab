"""The packed bytes of a weight, part by part: what writers of files and hashes read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import InputError
from regraft.ir.stacked import StackedWeight
from regraft.ir.streaming import fill
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight, pack

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
