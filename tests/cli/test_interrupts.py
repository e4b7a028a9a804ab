"""Real signals and real limits: whatever ends a conversion, its output is whole or absent."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from tests.robustness.build import graph, linear, model, node, weight

ROOT = Path(__file__).parents[2]

PLUGIN = """
import os, signal
from dataclasses import dataclass
from typing import ClassVar
from regraft import Context, Exact, Module, PassResult, Plugin

@dataclass(frozen=True, slots=True)
class Stop:
    "Sends this process a signal in the middle of its work."
    name: ClassVar = "stop"
    contract: ClassVar = Exact()
    signal: int = 2

    def run(self, module: Module, ctx: Context) -> PassResult:
        os.kill(os.getpid(), self.signal)
        return PassResult(False)

PLUGIN = Plugin(api_version=1, name="stop", passes=(Stop,))
"""


@pytest.fixture(autouse=True)
def _hears_signals() -> Iterator[None]:
    """Undoes what a shell does to background jobs: they, and all they start, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def regraft(
    folder: Path, *argv: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    code = "from regraft.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *argv], cwd=folder, capture_output=True,
        text=True, check=False, timeout=60, preexec_fn=before,
        env={"PYTHONPATH": f"{ROOT}/src:{ROOT}", "PATH": "", "XDG_CACHE_HOME": str(folder.parent)},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of 256 KiB, a plugin, and two outputs of an earlier run."""
    made = tmp_path / "work"
    (made / "out").mkdir(parents=True)
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    weights = [weight("w", (4, 8192)), weight("v", (8192, 4), 1)]
    big = model(graph(nodes, initializers=weights))
    (made / "m.onnx").write_bytes(big.SerializeToString())
    (made / "plugin.py").write_text(PLUGIN)
    (made / "out" / "model.onnx").write_text("old")
    (made / "old.onnx").write_bytes(linear().SerializeToString())
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("out", ["new", "new.onnx", "out", "old.onnx"])
def test_ctrl_c_in_the_middle_leaves_everything_as_it_was(folder: Path, out: str) -> None:
    before = contents(folder)
    done = regraft(
        folder, "convert", "m.onnx", "-o", out, "--force", "--plugin", "plugin.py:PLUGIN",
        "--passes", "canonicalize,stop,canonicalize",
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted; nothing was written"  # after the ^C
    assert done.stdout == ""
    assert contents(folder) == before


@pytest.mark.parametrize("out", ["new", "new.onnx", "out", "old.onnx"])
def test_full_disk_leaves_everything_as_it_was(folder: Path, out: str) -> None:
    """A limit on the size of files fails a write in its middle, as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = contents(folder)
    done = regraft(folder, "convert", "m.onnx", "-o", out, "--force", before=limit)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: `{out}` was not written: ")
    assert done.stderr.count("\n") <= 2
    assert contents(folder) == before


def test_without_a_signal_the_same_commands_write(folder: Path) -> None:
    before = contents(folder)
    for out in ("new", "new.onnx", "out", "old.onnx"):
        done = regraft(folder, "convert", "m.onnx", "-o", out, "--force")
        assert done.returncode == 0, done.stderr
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {
        *(f"{name}/{file}" for name in ("new", "out")
          for file in ("model.onnx", "report.json", "report.html", "recipe.yaml")),
        "new.onnx",
        "old.onnx",
    }  # fmt: skip
    assert after["new.onnx"] == after["old.onnx"] == after["out/model.onnx"]
    onnx.checker.check_model(onnx.load_from_string(after["out/model.onnx"]))


def test_output_of_a_files_name_is_no_folder(folder: Path) -> None:
    (folder / "dir.onnx").mkdir()
    done = regraft(folder, "convert", "m.onnx", "-o", "dir.onnx", "--force")
    assert done.returncode == 2
    assert "`dir.onnx` is a folder" in done.stderr
    assert list((folder / "dir.onnx").iterdir()) == []
