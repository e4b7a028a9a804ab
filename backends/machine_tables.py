"""Where tables lie that were measured on this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def user_table(target: str) -> Path:
    """Returns where `tune` writes by default and what reads a table looks first.

    `XDG_CACHE_HOME` (else `~/.cache`) on Linux, the folder for caches of the platform elsewhere.
    """
    if platform.system() == "Windows":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform.system() == "Darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "regraft" / f"costs-{target}.json"
