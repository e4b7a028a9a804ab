"""The folder of a process for temporary files: it goes with the process.

A process that is killed deletes nothing. So every process holds a lock in its folder, which the
system releases whatever ends it, and the next process that needs a folder deletes those beside it
whose locks are free.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

_PREFIX = "regraft-spill-"
_LOCK = "lock"


def spill_folder() -> Path:
    """Returns the folder of this process in the system's temporary one."""
    # a forked process has a folder of its own, and leaves its parent's alone
    return _begin(Path(tempfile.gettempdir()), os.getpid())[0]


@lru_cache
def _begin(parent: Path, pid: int) -> tuple[Path, IO[bytes]]:
    """Returns the folder and its lock, which is held while the cache holds the file."""
    for other in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        if _is_left(other):
            shutil.rmtree(other.parent, ignore_errors=True)  # others may be deleting it, too
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    atexit.register(_remove, folder, pid)
    new = folder / "new"
    lock = new.open("wb")
    if sys.platform != "win32":
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / _LOCK)  # others look at it only now that it is held
    return folder, lock


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(lock: Path) -> bool:
    """Whether the process that made a lock has ended."""
    if sys.platform == "win32":
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, gone or another user's
        return False
    return True
