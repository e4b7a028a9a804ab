"""Checkpoints of a run: written beside and renamed, read without running what they contain."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from regraft.ir.errors import InputError, UsageError

_VERSION = 1

Facts = Mapping[str, str]
"""What a run is, by name: two runs with equal facts are the same run."""


def write_checkpoint(path: Path, facts: Facts, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint; a run that is interrupted meanwhile leaves the one before.

    Args:
        path: The file; its folder is made.
        facts: What the run is.
        content: Tensors, numbers, strings, and lists and dicts of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save({"version": _VERSION, "facts": dict(facts), **content}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_checkpoint(path: Path, facts: Facts) -> dict[str, Any] | None:
    """Returns the content of a checkpoint, None where there is none.

    Raises:
        InputError: When the file is no checkpoint.
        UsageError: When it is one of another run.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        message = f"`{path}` is no checkpoint of a training run"
        raise InputError(message, hint="remove it to begin anew") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise InputError(f"`{path}` is a checkpoint of another version", hint="remove it")
    old: dict[str, str] = content["facts"]
    differences = [
        f"`{name}` was {old.get(name, 'absent')}, is {facts.get(name, 'absent')}"
        for name in sorted({*old, *facts})
        if old.get(name) != facts.get(name)
    ]
    if differences:
        raise UsageError(
            f"`{path}` is a checkpoint of another run: {'; '.join(differences[:4])}",
            hint="remove it, or give this run another folder",
        )
    return content
