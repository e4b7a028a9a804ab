"""Outputs that are Python code: opened when a function is named, never by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import regraft
from regraft.ir.errors import InputError
from regraft.rerun import find_source, read_output


def test_a_folder_with_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(InputError, match="it runs only when it is named") as caught:
        regraft.load(tmp_path)
    assert "FILE.py:FUNCTION" in str(caught.value.hint)


def test_a_file_of_code_wants_a_function(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("raise SystemExit('it ran')\n")
    with pytest.raises(InputError, match="none of its functions is named") as caught:
        regraft.load(path)
    assert f"{path}:FUNCTION" in str(caught.value.hint)


def test_what_was_made_from_code_is_not_made_again(tmp_path: Path) -> None:
    source = {"path": "net.py:factory", "sha256": None}
    (tmp_path / "report.json").write_text(json.dumps({"source": source, "versions": {}}))
    (tmp_path / "recipe.yaml").write_text("passes: []\n")
    with pytest.raises(InputError, match=r"made from `net\.py:factory`, of which no file"):
        find_source(read_output(tmp_path), None)
