"""Temporary files of weights go with their process, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_STORE = """
import sys
import numpy as np
from regraft.ir.spill import stored
weight = stored(np.ones(1 << 20, np.float32))
print("stored", flush=True)
sys.stdin.read()
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """Starts a process that holds a weight on disk until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STORE], env={**os.environ, "TMPDIR": str(folder)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "stored\n"
    return process


def spilled(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.spill"))


@pytest.mark.skipif(sys.platform == "win32", reason="files that are mapped cannot be deleted")
def test_files_of_a_killed_process_go_with_the_next_one(tmp_path: Path) -> None:
    killed, living = begun(tmp_path), begun(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert spilled(tmp_path) == 2 * (4 << 20)
    after = begun(tmp_path)
    assert spilled(tmp_path) == 2 * (4 << 20)  # of the two that live
    after.communicate("")
    living.communicate("")
    assert list(tmp_path.iterdir()) == []
