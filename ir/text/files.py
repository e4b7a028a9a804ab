"""Text modules as files: `NAME.rg`, and large tensors in `NAME.rg.weights` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from regraft.ir.derive import source_names
from regraft.ir.errors import InputError
from regraft.ir.generated import RandomWeight, SplatWeight
from regraft.ir.growth import Growth
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec
from regraft.ir.packed_parts import packed_parts
from regraft.ir.text.parser import parse_module
from regraft.ir.text.printer import print_module
from regraft.ir.text.weights import AUTO_BYTES
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight

_ALIGN = 64  # what memory-mapped readers and vector loads want


def write_module(module: Module, path: Path) -> list[Path]:
    """Writes a module that `read_module` reads back anywhere; weights go tensor by tensor.

    Derived weights are written as their content, with the names of their sources.

    Args:
        module: The module; it is not changed.
        path: The text file; large tensors go into `path` + `.weights`.

    Returns:
        The files written.
    """
    copy = module.clone()
    store = copy.weights
    large = []
    for name in store:
        weight = store[name]
        if isinstance(weight, SplatWeight | RandomWeight | ArrayWeight) and (
            not isinstance(weight, ArrayWeight) or weight.nbytes <= AUTO_BYTES
        ):
            continue
        if weight.nbytes > AUTO_BYTES:
            large.append(name)
        else:
            store.set(name, ArrayWeight(np.array(weight.numpy()), _names(name, weight)))
    files = [path]
    if large:
        data = path.with_name(path.name + ".weights")
        files.append(data)
        with data.open("wb") as file, Growth() as growth:
            for name in large:
                weight = store[name]
                file.write(b"\0" * (-file.tell() % _ALIGN))
                place = file.tell()
                for part in packed_parts(weight):
                    file.write(part)
                file.flush()
                growth.advance(file.tell())
                stored = MappedWeight(
                    data, place, weight.dtype, weight.shape, growth, _names(name, weight)
                )
                store.set(name, stored)
    path.write_text(print_module(copy, base=path.parent), encoding="utf-8")
    return files


def _names(name: str, weight: Weight) -> tuple[str, ...]:
    """Returns the tensors that a weight is made from, none where it is one itself."""
    names = tuple(source_names(name, weight))
    return () if names == (name,) else names


def read_module(path: Path, *, ops: Mapping[str, OpSpec] = OPS) -> Module:
    """Reads a text module; files that it names are looked for beside it.

    Raises:
        InputError: When the file cannot be read.
        ParseError: With line, column and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{path}` cannot be read: {error}") from error
    return parse_module(text, base=path.parent, ops=ops)
