"""What docs/methods.toml claims: tests and passes that exist, reasons where it is not done."""

from __future__ import annotations

import re

import pytest

from docs.generate import FOLDER
from docs.methods import STATUSES, read_methods
from regraft.passes import PASSES

ROOT = FOLDER.parent
METHODS = read_methods()


def test_titles_are_unique() -> None:
    titles = [entry["title"] for entry in METHODS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry["title"][:40])
def test_entry_holds(entry: dict[str, str]) -> None:
    assert entry["status"] in STATUSES
    if entry["status"] != "done":
        assert entry.get("reason"), "say what is missing, or when it comes"
    if entry["status"] == "later":
        assert "test" not in entry
        return
    # a kernel's method is a lowering: a target has it, not a pass
    assert entry["pass"] in {*(each.name for each in PASSES), "convert --target triton"}
    path, _, name = entry["test"].partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:    )?def {re.escape(name)}\(", text, re.MULTILINE), entry["test"]
