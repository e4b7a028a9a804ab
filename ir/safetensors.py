"""The safetensors format: tensors of a file as memory-mapped weights, and files written by tensor.

A file is a length (u64), a JSON header of that length that names type, shape and place of every
tensor, and their bytes. Nothing in it is executed. Source: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.ir.errors import InputError
from regraft.ir.packed_parts import packed_parts
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight

DTYPES = {
    "BOOL": DType.BOOL,
    "U8": DType.U8, "I8": DType.I8, "U16": DType.U16, "I16": DType.I16,
    "U32": DType.U32, "I32": DType.I32, "U64": DType.U64, "I64": DType.I64,
    "F16": DType.F16, "BF16": DType.BF16, "F32": DType.F32, "F64": DType.F64,
    "F8_E4M3": DType.F8E4M3FN, "F8_E5M2": DType.F8E5M2, "F8_E8M0": DType.F8E8M0,
    "F8_E4M3FNUZ": DType.F8E4M3FNUZ, "F8_E5M2FNUZ": DType.F8E5M2FNUZ,
    "C64": DType.C64, "C128": DType.C128,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_ALIGNMENT = 64
_MAX_NAMED = 12


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """What the header of a file says.

    Args:
        path: The file.
        tensors: Its tensors by name, in the header's order; nothing is read yet.
        metadata: Its strings.
    """

    path: Path
    tensors: Mapping[str, MappedWeight]
    metadata: Mapping[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header of a file and checks it against the file's size.

    Raises:
        InputError: Naming every tensor that has no valid place in the file, or what is wrong with
            the header.

    Cost: O(header).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(_LENGTH_BYTES)
            length = int.from_bytes(first, "little")
            if len(first) < _LENGTH_BYTES or not 2 <= length <= size - _LENGTH_BYTES:
                raise _damaged(path, _length_problem(size, length))
            if length > _MAX_HEADER_BYTES:
                raise _damaged(path, f"its header would have {length:,} bytes")
            text = file.read(length)
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    return _read_entries(path, header, _LENGTH_BYTES + length, size)


def _length_problem(size: int, length: int) -> str:
    if size < _LENGTH_BYTES + 2:
        return f"it has {size} bytes, less than a header"
    return f"its first 8 bytes say a header of {length:,} bytes, and the file has {size:,}"


def _read_entries(path: Path, header: dict[str, Any], start: int, size: int) -> SafetensorsFile:
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, MappedWeight] = {}
    problems: list[str] = []
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        problem = _problem_of(entry, size - start)
        if problem:
            problems.append(f"`{name}` {problem}")
            continue
        begin, end = entry["data_offsets"]
        places.append((begin, end, name))
        tensors[name] = MappedWeight(
            path, start + begin, DTYPES[entry["dtype"]], tuple(entry["shape"])
        )
    reached = 0
    for begin, end, name in sorted(places):
        if begin < reached:
            problems.append(f"`{name}` overlaps the tensor before it")
        reached = max(reached, end)
    if problems:
        more = len(problems) - _MAX_NAMED
        listed = "\n  ".join(problems[:_MAX_NAMED]) + (f"\n  and {more} more" if more > 0 else "")
        raise _damaged(path, f"{len(problems)} of {len(header)} tensors are wrong:\n  {listed}")
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is no JSON object")
    return SafetensorsFile(path, tensors, {str(k): str(v) for k, v in metadata.items()})


def _problem_of(entry: Any, num_bytes: int) -> str:
    """Returns what is wrong with a tensor's entry, or nothing."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "has no type, shape and place"
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        return f"has the element type `{entry['dtype']}`, which has no counterpart"
    shape, place = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        return f"has the shape {shape}"
    if not _are_sizes(place) or len(place) != 2 or place[0] > place[1]:
        return f"has the place {place}"
    if dtype.nbytes(math.prod(shape)) != place[1] - place[0]:
        return f"is {dtype}{shape} and has {place[1] - place[0]:,} bytes"
    if place[1] > num_bytes:
        return f"ends at byte {place[1]:,} of {num_bytes:,}: the file is truncated"
    return ""


def _are_sizes(items: Any) -> bool:
    return isinstance(items, list) and all(type(item) is int and item >= 0 for item in items)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"`{path}` is no valid safetensors file: {what}", hint="download or copy it again"
    )


def write_safetensors(
    path: Path, tensors: Mapping[str, Weight], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file; one tensor at a time is in memory, of a large one only a part.

    Args:
        path: The file.
        tensors: Tensors by name, written in that order within each width of elements.
        metadata: Strings for the header.

    Raises:
        InputError: For an element type that the format lacks.
        OSError: When the disk is full or the folder cannot be written.
    """
    lacking = [name for name, weight in tensors.items() if weight.dtype not in NAMES]
    if lacking:
        raise InputError(
            f"safetensors has no element type for {', '.join(f'`{name}`' for name in lacking[:6])}"
        )
    # wide elements first: every tensor is then aligned to its element
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.bits)
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, weight in order:
        header[name] = {
            "dtype": NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.nbytes],
        }
        offset += weight.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for _, weight in order:
            for part in packed_parts(weight):
                file.write(part)
