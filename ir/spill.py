"""A temporary file for tensors that were computed from data and fit no recorded step."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from regraft.ir.growth import Growth
from regraft.ir.spill_folder import spill_folder
from regraft.ir.types import DType, dtype_of
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight, pack

IN_MEMORY_BYTES = 1 << 20
"""Smaller tensors are no reason for a file."""

_ALIGN = 64  # what memory-mapped readers and vector loads want


class SpillFile:
    """Appends tensors to a temporary file and hands out memory-mapped weights of it.

    The file is deleted on `close`; on systems that keep mapped files alive, arrays that are still
    mapped stay valid until they are released.
    """

    __slots__ = ("_file", "_growth", "path")

    def __init__(self, folder: Path | None = None) -> None:
        """Creates the file.

        Args:
            folder: Where; default: the process's own, see `spill_folder`.
        """
        # opened by hand: the handle lives as long as this object and `close` deletes the file
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix="regraft-", suffix=".spill", dir=folder or spill_folder(), delete=False
        )
        self.path = Path(self._file.name)
        self._growth = Growth()

    def append(self, array: np.ndarray[Any, Any]) -> MappedWeight:
        """Writes a tensor and returns the weight that reads it back.

        Raises:
            OSError: When the disk is full.
        """
        dtype = dtype_of(array)
        offset = self._file.tell()
        padding = -offset % _ALIGN
        self._file.write(b"\0" * padding)
        self._file.write(pack(array, dtype))
        self._file.flush()
        self._growth.advance(self._file.tell())
        return MappedWeight(self.path, offset + padding, dtype, array.shape, growth=self._growth)

    def close(self) -> None:
        """Deletes the file; idempotent."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def stored(
    array: np.ndarray[Any, Any], folder: Path | None = None, made_from: tuple[str, ...] = ()
) -> Weight:
    """Returns a weight with the array as its content, on disk where it is large.

    The file has this tensor alone and is deleted with the last reference to the weight, at the end
    of the program at the latest.

    Args:
        array: The content; the caller does not write to it afterwards.
        folder: Where; default: the process's own, see `spill_folder`.
        made_from: As of an `ArrayWeight`.
    """
    dtype = dtype_of(array)
    if array.nbytes < IN_MEMORY_BYTES:  # of 4-bit types a byte each, here
        return ArrayWeight(array, made_from)
    if dtype.bits >= 8 and array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
    else:
        data = memoryview(pack(array, dtype))
    return stored_parts((data,), dtype, array.shape, folder, made_from)


def stored_parts(
    parts: Iterable[memoryview],
    dtype: DType,
    shape: tuple[int, ...],
    folder: Path | None = None,
    made_from: tuple[str, ...] = (),
) -> MappedWeight:
    """Returns a weight on disk with packed bytes as its content.

    Args:
        parts: The little-endian packed bytes, in order.
        dtype: Element type.
        shape: Sizes.
        folder: Where; default: the process's own, see `spill_folder`.
        made_from: As of an `ArrayWeight`.
    """
    with tempfile.NamedTemporaryFile(
        prefix="regraft-", suffix=".spill", dir=folder or spill_folder(), delete=False
    ) as file:
        path = Path(file.name)
        growth = Growth()
        # every weight of the file holds the growth, and nothing else does
        weakref.finalize(growth, path.unlink, missing_ok=True)
        for part in parts:
            file.write(part)
        growth.advance(file.tell())
    return MappedWeight(path, 0, dtype, shape, growth=growth, made_from=made_from)
