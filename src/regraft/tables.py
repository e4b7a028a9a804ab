"""Cost tables measured on this machine: where they are, and which targets have one."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from regraft.backends.onnx.legalize import MEASURED, CostTable, read_table


def user_table(target: str) -> Path:
    """Returns where `tune` writes by default and `legalize` looks first.

    `XDG_CACHE_HOME` (else `~/.cache`) on Linux, the folder for caches of the platform elsewhere.
    """
    if platform.system() == "Windows":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform.system() == "Darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "regraft" / f"costs-{target}.json"


def user_tables() -> dict[str, CostTable]:
    """Returns the tables that `tune` wrote on this machine, by target.

    Raises:
        InputError: When a file is no table of this version.
    """
    paths = {target: user_table(target) for target in MEASURED}
    return {target: read_table(path) for target, path in paths.items() if path.is_file()}
