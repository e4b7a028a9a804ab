"""Where emitted weights go: inside the model, or tensor by tensor into an external-data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from regraft.backends.onnx.tensors import ONNX_DTYPES, array_to_tensor
from regraft.ir.growth import Growth
from regraft.ir.packed_parts import digest_of, packed_parts, sample_of
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight, contains_nan

EXTERNAL_ABOVE = 3 << 29
"""Models with more weight bytes than this (1.5 GiB) get external data: a protobuf ends at 2 GiB."""

_STREAM_ABOVE = 1 << 16
"""Bytes of a weight from which on it is written from where it lies, and not held in the model."""

# numbers of fields whose bytes are preceded by their length, in onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = (
    bytes([number << 3 | 2]) for number in (7, 5, 9)
)

_ALIGN = 4096  # page size, so that a runtime can map tensors in place
_EMBED_BELOW = 1024


class Storage(Protocol):
    """Turns weights into initializers."""

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns the initializer of a weight."""


class Embedded:
    """Keeps every weight inside the model."""

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns an initializer with raw data."""
        return array_to_tensor(weight.numpy(), name)


class Streamed:
    """Leaves the content of large weights out of the model, for `write` to put in one by one."""

    def __init__(self) -> None:
        self._held: dict[str, Weight] = {}

    def tensor(self, weight: Weight, name: str) -> onnx.TensorProto:
        """Returns the initializer of a weight, that of a large one without its content."""
        if weight.nbytes < _STREAM_ABOVE or weight.dtype is DType.STRING:
            return array_to_tensor(weight.numpy(), name)
        self._held[name] = weight
        return onnx.TensorProto(data_type=ONNX_DTYPES[weight.dtype], dims=weight.shape, name=name)

    def write(self, file: BinaryIO, model: onnx.ModelProto) -> None:
        """Writes a model whose weights this storage took; its graph is taken out of it.

        The bytes are those of the protobuf with its fields in another order, which means the same.

        Args:
            file: The model file, unbuffered.
            model: The model.

        Raises:
            OSError: When the disk is full.
        """
        heads = [_head(tensor, self._held.get(tensor.name)) for tensor in model.graph.initializer]
        weights = [self._held.get(tensor.name) for tensor in model.graph.initializer]
        model.graph.ClearField("initializer")
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        size = len(graph) + sum(
            len(head) + (0 if weight is None else weight.nbytes)
            for head, weight in zip(heads, weights, strict=True)
        )
        for part in (model.SerializeToString(), _MODEL_GRAPH + _varint(size), graph):
            _write_all(file, memoryview(part))
        for head, weight in zip(heads, weights, strict=True):
            _write_all(file, memoryview(head))
            for part in packed_parts(weight) if weight is not None else ():
                _write_all(file, part)


def _head(tensor: onnx.TensorProto, weight: Weight | None) -> bytes:
    """Returns an initializer as a graph's field, up to the content of a weight that follows."""
    own: bytes = tensor.SerializeToString()
    if weight is None:
        return _GRAPH_INITIALIZER + _varint(len(own)) + own
    own += _TENSOR_RAW_DATA + _varint(weight.nbytes)
    return _GRAPH_INITIALIZER + _varint(len(own) + weight.nbytes) + own


def _varint(number: int) -> bytes:
    """Returns a length as protobuf writes it: seven bits per byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


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
        key = (weight.dtype, weight.shape, sample_of(weight))
        known = self._by_sample.setdefault(key, [])
        for other, other_name in known:
            if other is weight or self._digest(other) == self._digest(weight):
                return other_name
        known.append((weight, name))
        return None

    def _digest(self, weight: Weight) -> bytes:
        found = self._digests.get(id(weight))
        if found is None:
            found = self._digests[id(weight)] = digest_of(weight)
        return found


def data_file_name(model: Path) -> str:
    """Returns the name of the external-data file of a model file."""
    return f"{model.name}.data"
