"""Where emitted weights go: inside the model, or tensor by tensor into an external-data file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from regraft.backends.onnx.tensors import ONNX_DTYPES, array_to_tensor
from regraft.ir.errors import InputError
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight, contains_nan, pack

Array = np.ndarray[Any, Any]

EXTERNAL_ABOVE = 3 << 29
"""Models with more weight bytes than this (1.5 GiB) get external data: a protobuf ends at 2 GiB."""

_ALIGN = 4096  # page size, so that a runtime can map tensors in place
_EMBED_BELOW = 1024
_CHUNK = 1 << 22


class Storage(Protocol):
    """Turns weights into initializers."""

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns the initializer of a weight."""


class Embedded:
    """Keeps every weight inside the model."""

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns an initializer with raw data."""
        return array_to_tensor(weight.numpy(), name)


class External:
    """Writes weights to one file beside the model; small ones stay inside.

    Args:
        file: The open data file.
        location: Its path relative to the model, as the model will name it.
    """

    def __init__(self, file: BinaryIO, location: str) -> None:
        self.file = file
        self.location = location
        self.offset = 0
        self.nan_names: list[str] = []

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Writes a weight and returns the initializer that points to it.

        Raises:
            OSError: When the disk is full.
        """
        if weight.nbytes < _EMBED_BELOW or weight.dtype is DType.STRING:
            return array_to_tensor(weight.numpy(), name)
        padding = -self.offset % _ALIGN
        self.file.write(b"\0" * padding)
        start = self.offset + padding
        if isinstance(weight, MappedWeight):
            length, has_nan = _copy_mapped(self.file, weight)
            if has_nan:
                self.nan_names.append(name)
        else:
            length = _write_array(self.file, weight.numpy(), weight.dtype)
        self.offset = start + length
        proto = onnx.TensorProto(
            data_type=ONNX_DTYPES[weight.dtype], dims=weight.shape, name=name,
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        for key, value in (("location", self.location), ("offset", start), ("length", length)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        return proto


def _copy_mapped(file: BinaryIO, weight: MappedWeight) -> tuple[int, bool]:
    """Copies a weight from its file through a small buffer; returns its bytes and a NaN's presence.

    Reading through a map would count every page as resident until the map is gone.
    """
    weight.check_unchanged()
    buffer = bytearray(_CHUNK)
    left, has_nan = weight.nbytes, False
    checks = weight.dtype.is_float and weight.dtype.bits >= 16
    with weight.path.open("rb", buffering=0) as source:
        source.seek(weight.offset)
        while left:
            view = memoryview(buffer)[: min(left, _CHUNK)]
            got = source.readinto(view)
            if not got:
                raise InputError(f"`{weight.path}` was truncated while it was read")
            view = view[:got]
            file.write(view)
            left -= got
            if checks and not has_nan and got % weight.dtype.numpy.itemsize == 0:
                has_nan = contains_nan(np.frombuffer(view, weight.dtype.numpy))
    return weight.nbytes, has_nan


def _write_array(file: BinaryIO, array: Array, dtype: DType) -> int:
    if dtype.bits < 8 or not array.flags.c_contiguous:
        data = pack(array, dtype)
        file.write(data)
        return len(data)
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        file.write(flat[start : start + _CHUNK].data)
    return int(flat.size)


class Deduplicator:
    """Finds weights of equal content, so that one initializer serves all of them.

    Only weights that agree in type, shape and a sample of elements are hashed whole.
    """

    def __init__(self) -> None:
        self._by_sample: dict[tuple[Any, ...], list[tuple[Weight, str]]] = {}
        self._digests: dict[int, bytes] = {}

    def find(self, weight: Weight, name: str) -> str | None:
        """Returns the name of an earlier weight of equal content, else remembers this one."""
        if weight.dtype is DType.STRING:
            return None
        key = (weight.dtype, weight.shape, _sample(weight.numpy(), weight.dtype))
        known = self._by_sample.setdefault(key, [])
        for other, other_name in known:
            if other is weight or self._digest(other) == self._digest(weight):
                return other_name
        known.append((weight, name))
        return None

    def _digest(self, weight: Weight) -> bytes:
        found = self._digests.get(id(weight))
        if found is None:
            digest = hashlib.blake2b(digest_size=16)
            array = np.ascontiguousarray(weight.numpy())
            digest.update(array.reshape(-1).view(np.uint8).data)
            found = self._digests[id(weight)] = digest.digest()
        return found


def _sample(array: Array, dtype: DType) -> bytes:
    if array.size == 0:
        return b""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
    step = max(1, flat.size // 61)
    return pack(np.ascontiguousarray(flat[::step]), dtype)


def data_file_name(model: Path) -> str:
    """Returns the name of the external-data file of a model file."""
    return f"{model.name}.data"
