"""Weights rounded as they are read: of a matrix its packed codes are in memory, and a part of it.

What needs nothing of the inputs is found group by group: a part that fits the cache is read,
encoded, judged and packed before the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.matrix_rows import MatrixRows, rows_of
from regraft.ir.spill import IN_MEMORY_BYTES, stored_parts
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Weight
from regraft.passes.quantization.coded import Coded, CodesByOutput
from regraft.passes.quantization.encoding import rounded_rows
from regraft.passes.quantization.formats import Format
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.refusals import check_finite

Array = np.ndarray[Any, Any]

_READ_BYTES = 1 << 20
"""Read at a time: opening the file again costs less than a hundredth of what is done with it."""

_PART = 1 << 16
"""Numbers that are encoded at a time: they fit the second-level cache as f32 twice."""

_SIDE = 1 << 8
"""Side of the square that is transposed where outputs are the rows of the file."""


def can_round_by_parts(fmt: Format, group: int, size: int, method: Method) -> bool:
    """Returns whether parts of a matrix of `size` inputs can be encoded one by one."""
    return (
        method in ("round", "search")
        and fmt.is_integer
        and 0 < group < size
        and group * fmt.bits % 8 == 0
    )


def round_by_parts(
    name: str,
    rows: MatrixRows,
    fmt: Format,
    group: int,
    method: Method,
    folder: Path | None,
) -> tuple[Coded, float]:
    """Returns the codes of a matrix [K, N], and the relative error of the weight.

    Args:
        name: Of the weight.
        rows: Its rows: of the [K, N], or outputs where it is `transposed`.
        fmt: The integers.
        group: Positions of K that share a scale.
        method: `round` or `search`.
        folder: For the codes; default: the system's temporary folder.

    Raises:
        UsageError: When the weight holds NaN or Inf.
    """
    num_rows, length = rows.shape
    made = CodesByOutput(fmt, (length, num_rows) if rows.transposed else (num_rows, length), group)
    lost = whole = 0.0
    for part, inputs, outputs in _parts(rows, group):
        squares = float(np.vdot(part, part))
        if not math.isfinite(squares):
            check_finite(name, part)
        encoded = encode(part, fmt, group, method, None)
        made.put(encoded, inputs, outputs)
        off = encoded.decode()
        off -= part
        lost += float(np.vdot(off, off))
        whole += squares
    return made.stored(name, folder), math.sqrt(lost / whole) if whole else 0.0


def round_table(name: str, table: Weight, folder: Path | None) -> tuple[Weight, Array, float]:
    """Returns i8[V, D], f32[V] of rows each in its own symmetric range, and the relative error.

    Args:
        name: Of the table.
        table: Floats [V, D].
        folder: For the codes; default: the system's temporary folder.

    Raises:
        UsageError: When the table holds NaN or Inf.
    """
    rows = rows_of(table)
    held = MatrixRows(ArrayWeight(table.numpy()), transposed=False) if rows.transposed else rows
    num_rows, length = held.shape
    step = max(_READ_BYTES // (4 * length), 1)
    scale = np.empty(num_rows, np.float32)
    lost: list[float] = []
    whole: list[float] = []

    def parts() -> Iterator[memoryview]:
        for first in range(0, num_rows, step):
            own = slice(first, min(first + step, num_rows))
            part = np.asarray(held.read(own.start, own.stop), np.float32)
            check_finite(name, part)
            rounded, scale[own] = rounded_rows(part)
            lost.append(float(np.square(rounded * scale[own, None] - part).sum(dtype=np.float64)))
            whole.append(float(np.square(part).sum(dtype=np.float64)))
            yield rounded.reshape(-1).view(np.uint8).data

    codes: Weight
    if num_rows * length < IN_MEMORY_BYTES:
        packed = b"".join(parts())
        codes = ArrayWeight(np.frombuffer(packed, np.int8).reshape(num_rows, length), (name,))
    else:
        codes = stored_parts(parts(), DType.I8, (num_rows, length), folder, (name,))
    return codes, scale, math.sqrt(sum(lost) / max(sum(whole), 1e-30))


def _parts(rows: MatrixRows, group: int) -> Iterator[tuple[Array, slice, slice]]:
    """Yields f32[k, n] of whole groups with the inputs and the outputs that they are."""
    num_rows, length = rows.shape
    itemsize = 4 if rows.weight.dtype.bits > 16 else 2
    fitting = max(_READ_BYTES // (length * itemsize), 1)
    if not rows.transposed:
        height = max(group, fitting // group * group)
        for first in range(0, num_rows, height):
            stop = min(first + height, num_rows)
            read = rows.read(first, stop)
            yield from _blocks(read, first, group)
        return
    width = -(-_SIDE // group) * group
    height = max(fitting, _SIDE)
    for first in range(0, num_rows, height):
        stop = min(first + height, num_rows)
        read = rows.read(first, stop)
        for row in range(0, stop - first, _SIDE):
            outputs = slice(first + row, min(first + row + _SIDE, stop))
            for start in range(0, length, width):
                inputs = slice(start, min(start + width, length))
                square = read[row : row + _SIDE, inputs].T
                yield np.ascontiguousarray(square, np.float32), inputs, outputs


def _blocks(read: Array, first: int, group: int) -> Iterator[tuple[Array, slice, slice]]:
    """Cuts rows that were read, from row `first` on, into parts of a group or more."""
    num_rows, length = read.shape
    across = min(length, max(_PART // group, 1))
    down = max(_PART // (group * across), 1) * group
    for row in range(0, num_rows, down):
        inputs = slice(first + row, first + min(row + down, num_rows))
        for column in range(0, length, across):
            outputs = slice(column, min(column + across, length))
            part = read[row : row + down, outputs]
            yield np.asarray(part, np.float32), inputs, outputs
