"""Outputs are whole or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from regraft.ir.errors import RegraftError, UsageError
from regraft.output import check_destination, staged


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def write_half(out: Path, error: BaseException) -> None:
    with staged(out, force=True) as temp:
        (temp / "half").write_text("1")
        raise error


def test_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "out", force=False) as temp:
        (temp / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == ["out", "out/a"]


def test_file_appears_with_the_files_beside_it(tmp_path: Path) -> None:
    with staged(tmp_path / "m.onnx", force=False) as temp:
        (temp / "m.onnx").write_text("1")
        (temp / "m.onnx.data").write_text("2")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]


@pytest.mark.parametrize("name", ["out", "m.onnx"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_after_a_failure(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    (tmp_path / "other").write_text("kept")
    with pytest.raises(error):
        write_half(tmp_path / name, error("boom"))
    assert listing(tmp_path) == ["other"]


def test_existing_output_needs_force_and_survives_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(UsageError, match="exists"):
        check_destination(out, force=False)
    with pytest.raises(ValueError, match="boom"):
        write_half(out, ValueError("boom"))
    assert listing(tmp_path) == ["out", "out/old"]
    with staged(out, force=True) as temp:
        (temp / "new").write_text("2")
    assert listing(tmp_path) == ["out", "out/new"]


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RegraftError, match="the disk is full") as error,
        staged(tmp_path / "out", force=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.exit_code == 1
    assert listing(tmp_path) == []


def test_missing_parent_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        check_destination(tmp_path / "a" / "b", force=False)
