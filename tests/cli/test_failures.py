"""Failures that no argument causes: interrupts, full disks, bugs; and reproducers that replay."""

from __future__ import annotations

import errno
import json
import shlex
import tempfile
from pathlib import Path

import pytest

import regraft.emission
from regraft.ir.text import read_module
from tests.cli.snapshot import run
from tests.cli.workplace import populate


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    populate(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no tables of this machine
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("error", "code", "message"), [
    (KeyboardInterrupt(), 130, "error: interrupted; nothing was written"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
    (MemoryError(), 1, "error: out of memory"),
    (ZeroDivisionError("a bug"), 1, "internal error: ZeroDivisionError: a bug"),
], ids=lambda x: type(x).__name__)  # fmt: skip
@pytest.mark.parametrize("out", ["new", "new.onnx", "exists"])
def test_failure_while_writing_leaves_nothing(
    error: BaseException, code: int, message: str, out: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(module: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half of a model")
        raise error

    monkeypatch.setattr(regraft.emission, "save_onnx", fail)
    (tmp_path / "exists" / "kept").write_text("kept")
    before = listing(tmp_path)
    found, stdout, stderr = run(["convert", "model.onnx", "-o", out, "--force"], capsys)
    assert found == code
    assert stdout == ""
    assert message in stderr
    assert listing(tmp_path) == before
    assert (tmp_path / "exists" / "kept").read_text() == "kept"


def test_bug_is_one_json_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(regraft.emission, "save_onnx", fail)
    code, stdout, stderr = run(["convert", "model.onnx", "-o", "new", "--json"], capsys)
    assert code == 1
    assert json.loads(stdout)["error"]["exit_code"] == 1
    assert "Traceback" in stderr


@pytest.mark.parametrize("check", ["match", "each"])
@pytest.mark.parametrize("passes", ["acme", "drop-relu"])
def test_reproducer_replays_the_failure(
    check: str, passes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = ["--plugin", "plugin.py:PLUGIN"]
    pipeline = f"canonicalize,{passes},fold-norms"
    argv = ["convert", "model.onnx", "-o", "new", "--passes", pipeline, f"--check={check}"]
    code, _, stderr = run([*argv, *plugin], capsys)
    assert code == 3
    folders = list(tmp_path.glob("reproducer-*"))
    if check == "match" and passes == "drop-relu":
        assert not folders  # no rule was applied: the result as a whole was wrong
        return
    (folder,) = folders
    assert str(folder) in stderr
    rest = (folder / "pipeline.txt").read_text().strip()
    assert rest.startswith(f"{passes},fold-norms")
    assert any(node.op.name == "relu" for node in read_module(folder / "module.rg").graph)
    command = (folder / "README.txt").read_text().splitlines()[0]
    words = shlex.split(command.replace(f"$(cat {folder}/pipeline.txt)", rest))
    assert words[0] == "regraft"
    code, _, again = run([*words[1:], *plugin], capsys)
    assert code == 3
    first = stderr.splitlines()[0]
    assert again.splitlines()[0].split(": differs")[0] == first.split(": differs")[0]
