"""The tensors of a Hugging Face folder, by name and memory-mapped, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.ir.errors import InputError
from regraft.ir.safetensors import read_safetensors
from regraft.ir.weights import MappedWeight

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = ("pytorch_model*.bin", "model*.bin", "pytorch_model*.pt", "*.bin.index.json")
_MAX_NAMED = 12


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder.

    Args:
        folder: The folder.
        files: The safetensors files.
        tensors: Tensors by name.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, MappedWeight]


def is_folder(path: Path) -> bool:
    """Returns whether a path is a Hugging Face folder."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: When the file is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"`{path}` does not exist", hint="download the whole folder") from error
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"`{path}` is no JSON: {error}", hint="download or copy it again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"`{path}` holds no JSON object", hint="download or copy it again")
    return found


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the headers of a folder's safetensors files; no tensor is read.

    Raises:
        InputError: When files or tensors are missing, damaged or truncated, all of which it names,
            or when the folder has pickled weights alone.
    """
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    if (folder / WEIGHTS).is_file():
        file = read_safetensors(folder / WEIGHTS)
        return Checkpoint(folder, (file.path,), file.tensors)
    pickled = next((file for name in _PICKLES for file in sorted(folder.glob(name))), None)
    if pickled is not None:
        raise InputError(
            f"`{pickled}` is a pickled checkpoint: loading it can run any code",
            hint="convert it where you trust it: `AutoModel.from_pretrained(folder)."
            "save_pretrained(new_folder)` with the class of `architectures` writes safetensors",
        )
    raise InputError(
        f"folder `{folder}` has no `{WEIGHTS}` and no `{INDEX}`", hint="download the whole folder"
    )


def _open_shards(folder: Path) -> Checkpoint:
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"`{index}` has no `weight_map`", hint="download or copy it again")
    names = sorted({str(name) for name in places.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(
            f"`{index}` names files outside its folder: {listed(outside)}",
            hint="shards lie beside the index",
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(names)} shards are missing in `{folder}`: {listed(absent)}",
            hint="download the whole folder",
        )
    files = {name: read_safetensors(folder / name) for name in names}
    lost = [name for name, shard in places.items() if name not in files[shard].tensors]
    if lost:
        raise InputError(
            f"{len(lost)} tensors are not in the shard that `{index}` names: {listed(lost)}",
            hint="the shards and the index come from different versions: download all again",
        )
    tensors = {name: files[shard].tensors[name] for name, shard in places.items()}
    return Checkpoint(folder, tuple(file.path for file in files.values()), tensors)


def listed(names: Sequence[str]) -> str:
    """Returns names in backquotes, the first dozen and how many more."""
    more = len(names) - _MAX_NAMED
    text = ", ".join(f"`{name}`" for name in names[:_MAX_NAMED])
    return text + (f" and {more} more" if more > 0 else "")
