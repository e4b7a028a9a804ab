"""Named constant tensors: in memory, memory-mapped from a file, or derived by recorded steps.

A weight is loaded only when `numpy()` is called and released with the array; nothing holds a whole
model. The store keeps the role of each name and its tied aliases.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regraft.ir.errors import InputError
from regraft.ir.growth import Growth
from regraft.ir.types import DType, dtype_of


class Role(enum.Enum):
    """What a weight is for: only CONST weights are merged or folded by value."""

    PARAM = "param"
    BUFFER = "buffer"
    CONST = "const"


class Weight(Protocol):
    """A constant tensor that may live elsewhere."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""

    def numpy(self) -> np.ndarray[Any, Any]:
        """Loads the tensor: `dtype[*shape]`, 4- and 2-bit types unpacked; do not write to it."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayWeight:
    """A weight in memory.

    Args:
        array: The elements.
        made_from: Names of checkpoint tensors from which they were computed for good, by an
            operator that no step of a derived weight says.
    """

    array: np.ndarray[Any, Any]
    made_from: tuple[str, ...] = ()

    @property
    def dtype(self) -> DType:
        """Element type."""
        return dtype_of(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""
        return self.dtype.nbytes(self.array.size)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns the array itself."""
        return self.array


@dataclass(frozen=True, slots=True, eq=False)
class MappedWeight:
    """A weight that lies packed in a file (ONNX external data, safetensors).

    Each `numpy()` maps the file anew and the mapping dies with the array, so that reading through
    many gigabytes keeps none of them resident. A file that was replaced or written to since the
    weight was made is an error: other bytes may stand at the offset now.

    Args:
        path: The file.
        offset: First byte.
        dtype: Element type.
        shape: Sizes.
        growth: How far the file is written, where it is still being written: reading waits for the
            bytes, and its time of change says nothing.
        made_from: As of an `ArrayWeight`.
    """

    path: Path
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    growth: Growth | None = None
    made_from: tuple[str, ...] = ()
    _identity: tuple[int, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Remembers which file the path names now."""
        object.__setattr__(self, "_identity", self._identify())

    def _identify(self) -> tuple[int, ...] | None:
        try:
            stat = os.stat(self.path)
        except (OSError, ValueError):
            return None  # reading it says what is wrong
        return stat.st_dev, stat.st_ino, stat.st_mtime_ns if self.growth is None else 0

    def check_readable(self) -> None:
        """Checks that the file is the one that it was, and waits until the bytes are in it.

        Raises:
            InputError: When it was replaced or written to, or writing ended before.
        """
        if self._identity is not None and self._identify() not in (None, self._identity):
            raise InputError(
                f"`{self.path}` was replaced or changed after the model was loaded",
                hint="load the model again; save to another path to go on with a loaded one",
            )
        if self.growth is not None:
            self.growth.wait(self.offset + self.nbytes)

    @property
    def nbytes(self) -> int:
        """Packed size in bytes."""
        return self.dtype.nbytes(int(np.prod(self.shape, dtype=np.int64)))

    def numpy(self) -> np.ndarray[Any, Any]:
        """Maps the bytes; unpacks 4- and 2-bit types into a copy.

        Raises:
            InputError: When the file is not what it was when the model was loaded.
        """
        nbytes = self.nbytes
        if nbytes == 0:
            return np.zeros(self.shape, self.dtype.numpy)
        self.check_readable()
        try:
            raw = np.memmap(self.path, np.uint8, "r", self.offset, (nbytes,))
        except (OSError, ValueError) as error:
            raise InputError(
                f"`{self.path}`: cannot map {nbytes} bytes at offset {self.offset}: {error}",
                hint="the external data file was changed or truncated since the model was loaded",
            ) from error
        return unpack(raw, self.dtype, self.shape)


def contains_nan(array: np.ndarray[Any, Any]) -> bool:
    """Returns whether a float array holds a NaN; reads it once when it does not."""
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float64 if array.dtype.itemsize > 4 else np.float32)
    # the sum of Inf and -Inf is NaN too: then the elements decide
    return bool(np.isnan(total)) and bool(np.isnan(array).any())


def unpack(raw: np.ndarray[Any, Any], dtype: DType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Returns `dtype[*shape]` from little-endian packed bytes; a view where nothing is packed."""
    if dtype.bits >= 8:
        return raw.view(dtype.numpy).reshape(shape)
    per_byte = 8 // dtype.bits
    codes = np.empty((raw.size, per_byte), np.uint8)
    for idx in range(per_byte):
        np.right_shift(raw, idx * dtype.bits, out=codes[:, idx])
    codes &= (1 << dtype.bits) - 1
    flat = codes.reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    return flat.view(dtype.numpy).reshape(shape)  # these types read the low bits of a byte alone


_BYTES_AT_ONCE = 1 << 20
"""Bytes that are packed at a time: a few arrays of their codes are in memory."""


def pack(array: np.ndarray[Any, Any], dtype: DType) -> bytes:
    """Returns the little-endian packed bytes of `array`."""
    if dtype.bits >= 8:
        return np.ascontiguousarray(array).tobytes()
    flat = np.ascontiguousarray(array).reshape(-1)
    per_byte = 8 // dtype.bits
    packed = np.empty(-(-flat.size // per_byte), np.uint8)
    for first in range(0, packed.size, _BYTES_AT_ONCE):
        run = flat[first * per_byte : (first + _BYTES_AT_ONCE) * per_byte]
        packed[first : first + _BYTES_AT_ONCE] = _packed(run, dtype, per_byte)
    data: bytes = packed.tobytes()
    return data


def _packed(flat: np.ndarray[Any, Any], dtype: DType, per_byte: int) -> np.ndarray[Any, Any]:
    """Returns u8 of a run of codes that begins at a byte."""
    codes = (flat if flat.dtype.itemsize == 1 else flat.astype(np.int8)).view(np.uint8)
    missing = -codes.size % per_byte
    if missing:
        codes = np.concatenate([codes, np.zeros(missing, np.uint8)])
    mask = (1 << dtype.bits) - 1
    packed: np.ndarray[Any, Any] = codes[::per_byte] & mask
    for idx in range(1, per_byte):
        packed |= (codes[idx::per_byte] & mask) << (idx * dtype.bits)
    return packed


_UNSIGNED = {2: DType.U2, 4: DType.U4, 8: DType.U8}


def pack_rows(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Returns u8[N, ceil(K * bits / 8)] of codes u8[N, K]; every row begins at a byte."""
    missing = -codes.shape[1] % (8 // bits)
    filled = np.pad(codes.astype(np.uint8), ((0, 0), (0, missing)))
    return np.frombuffer(pack(filled, _UNSIGNED[bits]), np.uint8).reshape(codes.shape[0], -1)


def pack_columns(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Returns u8[ceil(K * bits / 8), N] of codes of one byte each [K, N], packed along K.

    It is the transpose of what `pack_rows` makes of the transpose, several times as fast.
    """
    wide = np.ascontiguousarray(codes).view(np.uint8)
    per_byte = 8 // bits
    missing = -len(wide) % per_byte
    if missing:
        wide = np.concatenate([wide, np.zeros((missing, wide.shape[1]), np.uint8)])
    mask = (1 << bits) - 1
    packed: np.ndarray[Any, Any] = wide[::per_byte] & mask
    for idx in range(1, per_byte):
        packed |= (wide[idx::per_byte] & mask) << (idx * bits)
    return packed


def unpack_rows(packed: np.ndarray[Any, Any], bits: int, size: int) -> np.ndarray[Any, Any]:
    """Returns u8[N, size] of rows that `pack_rows` made, whatever their trailing axes."""
    rows = np.ascontiguousarray(packed).reshape(packed.shape[0], -1)
    codes = unpack(rows.reshape(-1), _UNSIGNED[bits], (len(rows), rows.shape[1] * (8 // bits)))
    return codes[:, :size].astype(np.uint8)


class WeightStore:
    """Weights by name, with roles and aliases (tied names).

    Attributes:
        aliases: Further names of weights.
        trainable: Whether parameters may be trained yet, so that one that is all zeros or ones is
            no number to be dropped: modules captured from PyTorch, until they are legalized.
    """

    __slots__ = ("_roles", "_weights", "aliases", "trainable")

    def __init__(self) -> None:
        self._weights: dict[str, Weight] = {}
        self._roles: dict[str, Role] = {}
        self.aliases: dict[str, str] = {}
        self.trainable = False

    def resolve(self, name: str) -> str:
        """Returns the name that an alias stands for, another name as it is."""
        return self.aliases.get(name, name)

    def __getitem__(self, name: str) -> Weight:
        return self._weights[self.aliases.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return name in self._weights or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def add(self, name: str, weight: Weight, role: Role = Role.CONST) -> str:
        """Adds a weight under `name`, made unique by a suffix when taken; returns the name used."""
        unique, number = name, 1
        while unique in self._weights or unique in self.aliases:
            unique, number = f"{name}.{number}", number + 1
        self._weights[unique] = weight
        self._roles[unique] = role
        return unique

    def set(self, name: str, weight: Weight) -> None:
        """Replaces the weight under an existing name."""
        name = self.aliases.get(name, name)
        if name not in self._weights:
            raise KeyError(name)
        self._weights[name] = weight

    def role(self, name: str) -> Role:
        """Returns the role of a weight."""
        return self._roles[self.aliases.get(name, name)]

    def remove(self, name: str) -> None:
        """Removes a weight that nothing uses any more, with its aliases."""
        del self._weights[name], self._roles[name]
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}

    def copy(self) -> WeightStore:
        """Returns a store that shares the tensors."""
        other = WeightStore()
        other._weights = dict(self._weights)
        other._roles = dict(self._roles)
        other.aliases = dict(self.aliases)
        other.trainable = self.trainable
        return other
