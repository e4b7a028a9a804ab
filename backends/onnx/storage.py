"""Where emitted weights go: inside the model, or tensor by tensor into an external-data file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from regraft.backends.onnx.tensors import ONNX_DTYPES, array_to_tensor
from regraft.ir.growth import Growth
from regraft.ir.packed_parts import packed_parts
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight, contains_nan, pack

EXTERNAL_ABOVE = 3 << 29
"""Models with more weight bytes than this (1.5 GiB) get external data: a protobuf ends at 2 GiB."""

_ALIGN = 4096  # page size, so that a runtime can map tensors in place
_EMBED_BELOW = 1024
_SAMPLE_BYTES = 256


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
    """Gives weights their places in one file beside the model, which is written afterwards.

    Small weights stay inside the model.

    Args:
        location: The path of the data file relative to the model, as the model will name it.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.num_bytes = 0
        self.nan_names: list[str] = []
        self._placed: list[tuple[int, str, Weight]] = []

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns the initializer of a weight, which points to its place in the file."""
        if weight.nbytes < _EMBED_BELOW or weight.dtype is DType.STRING:
            return array_to_tensor(weight.numpy(), name)
        start, length = self.num_bytes + -self.num_bytes % _ALIGN, weight.nbytes
        self._placed.append((start, name, weight))
        self.num_bytes = start + length
        proto = onnx.TensorProto(
            data_type=ONNX_DTYPES[weight.dtype], dims=weight.shape, name=name,
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        for key, value in (("location", self.location), ("offset", start), ("length", length)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        return proto

    def write(self, file: BinaryIO, growth: Growth) -> None:
        """Writes all weights, one after another.

        Args:
            file: The data file, unbuffered.
            growth: Hears of every weight that is in the file.

        Raises:
            OSError: When the disk is full.
        """
        for start, name, weight in self._placed:
            file.seek(start)
            for part in packed_parts(weight):
                if isinstance(weight, MappedWeight) and _holds_nan(part, weight.dtype):
                    self.nan_names.append(name)
                _write_all(file, part)
            growth.advance(start + weight.nbytes)
        self.nan_names = list(dict.fromkeys(self.nan_names))


def _holds_nan(part: memoryview, dtype: DType) -> bool:
    return dtype.is_float and dtype.bits >= 16 and contains_nan(np.frombuffer(part, dtype.numpy))


def _write_all(file: BinaryIO, part: memoryview) -> None:
    while part:
        part = part[file.write(part) :]


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
        key = (weight.dtype, weight.shape, _sample(weight))
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
            for part in packed_parts(weight):
                digest.update(part)
            found = self._digests[id(weight)] = digest.digest()
        return found


def _sample(weight: Weight) -> bytes:
    """Returns the packed bytes at a few places; a weight in a file is not mapped for them."""
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


def data_file_name(model: Path) -> str:
    """Returns the name of the external-data file of a model file."""
    return f"{model.name}.data"
