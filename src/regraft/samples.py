"""Samples given by the user: `.npz` files and folders of them."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.errors import InputError, UsageError
from regraft.ir.evaluate import bind_inputs
from regraft.ir.module import Module
from regraft.passes.check.samples import Sample, input_symbols
from regraft.passes.pipeline import suggest


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Reads one `.npz` file, or every `.npz` in a folder in order of name.

    Raises:
        InputError: When a file cannot be read or holds pickled objects.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"folder `{path}` has no `.npz` file",
            hint="write some with `numpy.savez(path, input_name=array, …)`",
        )
    return [_read_npz(file) for file in files]


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"`{path}` does not exist", hint="check the path") from error
    except OSError as error:
        raise InputError(
            f"`{path}` cannot be read: {error.strerror or error}",
            hint="check the path and its permissions",
        ) from error
    except _NO_ARCHIVE as error:
        raise InputError(
            f"`{path}` is not a `.npz` file of plain arrays",
            hint="write it with `numpy.savez(path, input_name=array, …)`",
        ) from error


_NO_ARCHIVE = (
    ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # encrypted
)  # fmt: skip
"""What reading a damaged or foreign archive raises."""


def _check_sizes(path: Path) -> None:
    """Compares stated with stored sizes: numpy allocates what a header states before it reads.

    Raises:
        ValueError: When a member is no array, or has another size than its header states.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                shape, _, dtype = _HEADERS[version](file)
                start = file.tell()
            if (
                not dtype.hasobject
                and member.file_size != start + math.prod(shape) * dtype.itemsize
            ):
                raise ValueError(f"{member.filename} has another size than its header states")


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def check_dims(module: Module, dims: Mapping[str, int]) -> None:
    """Checks that `--dims` names sizes that the model's inputs have.

    Raises:
        UsageError: For a size that they do not have.
    """
    known = [symbol.name for symbol in input_symbols(module)]
    for name in dims:
        if name not in known:
            raise UsageError(f"the model's inputs have no size `{name}`", hint=suggest(name, known))


def bind_samples(
    module: Module, samples: Sequence[Mapping[str, Any]], *, beside: Collection[str] = ()
) -> list[Sample]:
    """Checks samples against the module's inputs.

    Args:
        module: The module.
        samples: Arrays by name of input.
        beside: Entries that are no inputs and may be there, such as `labels`.

    Raises:
        InputError: For a missing or unknown input, or a wrong shape or element type.
    """
    names = [str(value.name) for value in module.graph.inputs]
    bound = []
    for i, given in enumerate(samples):
        sample = {name: given[name] for name in given if name in names or name not in beside}
        unknown = [name for name in sample if name not in names]
        if unknown:
            raise InputError(
                f"sample {i}: the model has no input `{unknown[0]}`",
                hint=f"it takes {', '.join(names)}",
            )
        bound.append(Sample(sample, bind_inputs(module.graph, sample), "given"))
    return bound
