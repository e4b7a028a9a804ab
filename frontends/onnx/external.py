"""External tensor data: found inside the model's folder only, sizes checked, mapped lazily."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from regraft.ir.errors import InputError
from regraft.ir.growth import Growth
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight

_EXPORT_AGAIN = "the model file is damaged or was edited; export or copy it again"

_LONGEST_PATH = 4096
"""No file system takes longer ones."""


@dataclass(slots=True)
class ExternalData:
    """Resolves external data below one folder.

    Attributes:
        root: The model's folder, resolved; None when the model came without a file.
        growth: How far the data file is written, where it is still being written.
    """

    root: Path | None
    growth: Growth | None
    _sizes: dict[str, tuple[Path, int]]

    def __init__(self, root: Path | None, growth: Growth | None = None) -> None:
        self.root = None if root is None else root.resolve()
        self.growth = growth
        self._sizes = {}

    def weight(
        self, tensor: onnx.TensorProto, dtype: DType, shape: tuple[int, ...]
    ) -> MappedWeight:
        """Returns the mapped weight of a tensor whose data lies in a file.

        Raises:
            InputError: When the file is missing, outside the folder, or too short, or the stated
                length is not that of the type.
        """
        entries = {item.key: item.value for item in tensor.external_data}
        where = f"tensor `{tensor.name}`"
        location = entries.get("location", "")
        if len(location) > _LONGEST_PATH:
            raise InputError(
                f"{where}: external data file `{location[:40]}…` is missing: its name has "
                f"{len(location)} characters",
                hint=_EXPORT_AGAIN,
            )
        if not location:
            raise InputError(f"{where}: external data without a location", hint=_EXPORT_AGAIN)
        path, size = self._find(location, where)
        weight = MappedWeight(path, 0, dtype, shape)
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or weight.nbytes)
        except ValueError as error:
            raise InputError(
                f"{where}: offset or length of its external data is no number", hint=_EXPORT_AGAIN
            ) from error
        if length != weight.nbytes:
            raise InputError(
                f"{where}: external data of {length} bytes, but {dtype}{list(shape)} "
                f"takes {weight.nbytes}",
                hint=_EXPORT_AGAIN,
            )
        if offset < 0 or offset + length > size:
            raise InputError(
                f"{where}: bytes {offset} to {offset + length} of `{location}` are wanted, "
                f"the file has {size}",
                hint="the external data file is truncated or belongs to another model",
            )
        return MappedWeight(path, offset, dtype, shape, self.growth)

    def _find(self, location: str, where: str) -> tuple[Path, int]:
        found = self._sizes.get(location)
        if found is not None:
            return found
        if self.root is None:
            raise InputError(
                f"{where}: external data `{location}` of a model that came without a folder",
                hint="load the model by its path",
            )
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        outside = posix.is_absolute() or windows.is_absolute() or windows.drive
        if outside or ".." in posix.parts or ".." in windows.parts:
            raise InputError(
                f"{where}: external data `{location}` points outside the model's folder",
                hint="regraft reads external data from the model's own folder only",
            )
        path = self.root / location
        try:
            resolved = path.resolve(strict=True)
            size = resolved.stat().st_size
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{where}: external data file `{location}` is missing",
                hint=f"it is expected at `{path}`; copy it beside the model",
            ) from error
        if not resolved.is_relative_to(self.root):
            raise InputError(
                f"{where}: external data `{location}` is a link out of the model's folder",
                hint="regraft reads external data from the model's own folder only",
            )
        if not resolved.is_file():
            raise InputError(
                f"{where}: external data `{location}` is no regular file",
                hint="copy the data file of the model there",
            )
        self._sizes[location] = (resolved, size)
        return resolved, size
