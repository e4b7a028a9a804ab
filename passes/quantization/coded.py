"""Matrices as integers where they are kept: on disk, in the order in which kernels read them.

Codes in groups lie output by output, those of an output packed one after another. To the graph they
are the transpose of that, [K, N]; kernels that take blocks take the bytes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight
from regraft.ir.spill import IN_MEMORY_BYTES, stored, stored_parts
from regraft.ir.steps import Slice, Source, Transpose, Tree
from regraft.ir.weights import ArrayWeight, Weight, pack_columns
from regraft.passes.quantization.encoding import Encoded
from regraft.passes.quantization.formats import Format

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A matrix [K, N] as integers.

    Args:
        format: The integers.
        group: Positions of K that share a scale.
        codes: [K, N], of the format's type.
        scale: f32[G, N], one row per group; f32[N] where one group spans all of K.
        zero_point: Of the format's type, shaped as the scales; None where it is symmetric.
    """

    format: Format
    group: int
    codes: Weight
    scale: Weight
    zero_point: Weight | None

    @property
    def num_bytes(self) -> int:
        """Packed size of codes, scales and zero points."""
        zeros = 0 if self.zero_point is None else self.zero_point.nbytes
        return self.codes.nbytes + self.scale.nbytes + zeros


class CodesByOutput:
    """Codes, scales and zero points of a matrix, put together from parts of it.

    Args:
        fmt: The integers.
        shape: K and N.
        group: Positions of K that share a scale.
    """

    def __init__(self, fmt: Format, shape: tuple[int, int], group: int) -> None:
        self._format, self._shape, self._group = fmt, shape, group
        size, width = shape
        self._num_groups = -(-size // group)
        # whole bytes per output: positions that fill up the last group have the code 0
        self._positions = -(-self._num_groups * group * fmt.bits // 8) * 8 // fmt.bits
        self._rows = np.zeros((width, fmt.dtype.nbytes(self._positions)), np.uint8)
        self._scale = np.empty((width, self._num_groups), np.float32)
        self._zeros = None if fmt.symmetric else np.empty((width, self._num_groups), np.uint8)

    def put(self, encoded: Encoded, inputs: slice, outputs: slice) -> None:
        """Takes codes of some inputs, which begin at a group and at a byte, and some outputs."""
        fmt, grid = self._format, encoded.grid
        first = inputs.start // self._group
        groups = slice(first, first + len(grid.scale))
        packed = pack_columns(encoded.codes, fmt.bits)
        start = fmt.dtype.nbytes(inputs.start)
        self._rows[outputs, start : start + len(packed)] = packed.T
        self._scale[outputs, groups] = grid.scale.T
        if self._zeros is not None and grid.zero_point is not None:
            self._zeros[outputs, groups] = grid.zero_point.T

    def stored(self, name: str, folder: Path | None) -> Coded:
        """Returns the matrix, on disk where it is large.

        Args:
            name: Of the weight that it was.
            folder: Where; default: the system's temporary folder.
        """
        fmt, (size, width) = self._format, self._shape
        held = stored_parts(
            (self._rows.reshape(-1).data,), fmt.dtype, (width, self._positions), folder, (name,)
        )
        tree: Tree = Source(f"{name}.codes", held)
        if size < self._positions:
            tree = Slice(tree, 1, 0, size)
        zeros = None
        if self._zeros is not None:
            zeros = stored(np.ascontiguousarray(self._zeros.T).view(fmt.dtype.numpy), folder)
        return Coded(
            fmt,
            self._group,
            DerivedWeight(Transpose(tree, (1, 0))),
            _by_output(f"{name}.scales", stored(self._scale, folder, (name,))),
            zeros,
        )


def _by_output(name: str, rows: Weight) -> Weight:
    """Returns the transpose of f32[N, G]."""
    if isinstance(rows, ArrayWeight):
        return ArrayWeight(np.ascontiguousarray(rows.array.T), rows.made_from)
    return DerivedWeight(Transpose(Source(name, rows), (1, 0)))


def coded(name: str, encoded: Encoded, folder: Path | None, *, per_channel: bool) -> Coded:
    """Returns codes as they are kept.

    Args:
        name: Of the weight that they were.
        encoded: The codes.
        folder: For large ones; default: the system's temporary folder.
        per_channel: Whether one group spans all of K.
    """
    grid = encoded.grid
    fmt = grid.format
    by_output = fmt.is_integer and not per_channel and grid.group * fmt.bits % 8 == 0
    if by_output and encoded.codes.nbytes >= IN_MEMORY_BYTES:
        size, width = encoded.codes.shape
        made = CodesByOutput(fmt, (size, width), grid.group)
        made.put(encoded, slice(0, size), slice(0, width))
        return made.stored(name, folder)
    scale, zero = grid.scale, grid.zero_point
    if per_channel:
        scale, zero = scale[0], None if zero is None else zero[0]
    return Coded(
        fmt,
        grid.group,
        stored(encoded.codes.astype(fmt.dtype.numpy), folder, (name,)),
        stored(scale, folder, (name,)),
        None if zero is None else stored(zero.astype(fmt.dtype.numpy), folder, (name,)),
    )
