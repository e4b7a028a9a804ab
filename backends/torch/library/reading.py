"""Reads a safetensors file with torch alone."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "C128": torch.complex128,
}


def read_tensors(path: str | os.PathLike[str]) -> Iterator[tuple[str, Tensor]]:
    """Iterates over the tensors of a safetensors file; each is read when it is asked for.

    Raises:
        ValueError: When it is no such file, or ends before its tensors do.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(start - 8) if start <= size else b"")
        except ValueError as error:
            raise ValueError(f"`{path}` is no safetensors file, or not whole") from error
    header.pop("__metadata__", None)
    stop = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if stop > size:
        raise ValueError(f"`{path}` is not whole: it has {size} bytes of {stop}")
    data = torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        # a clone owns its memory: views of one mapping could be neither saved nor copied apart
        flat = data[start + first : start + last].clone()
        yield name, flat.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def assign(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Gives a registered parameter or buffer its content; tied names see it too.

    Raises:
        ValueError: When there is none of that name, shape and dtype.
    """
    scope, _, name = path.rpartition(".")
    try:
        target = getattr(root.get_submodule(scope), name)
    except AttributeError as error:
        raise ValueError(f"the file has `{path}`, the model has no such tensor") from error
    if target.shape != tensor.shape or target.dtype != tensor.dtype:
        raise ValueError(
            f"`{path}` is {target.dtype}{list(target.shape)}, "
            f"the file has {tensor.dtype}{list(tensor.shape)}"
        )
    target.data = tensor
    vars(target).pop("is_unread", None)


def check_all_read(root: nn.Module, path: str | os.PathLike[str]) -> None:
    """Checks that a file had every tensor.

    Raises:
        ValueError: When it lacked some: they have no content.
    """
    tensors = itertools.chain(root.named_parameters(), root.named_buffers())
    missing = [f"`{name}`" for name, tensor in tensors if getattr(tensor, "is_unread", False)]
    if missing:
        more = ", …" if len(missing) > 5 else ""
        names = ", ".join(missing[:5]) + more
        raise ValueError(f"`{path}` lacks {len(missing)} tensors of the model: {names}")
