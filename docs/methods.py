"""The table of published methods, from methods.toml."""

from __future__ import annotations

import tomllib
from collections import Counter
from itertools import groupby
from pathlib import Path

FILE = Path(__file__).parent / "methods.toml"
STATUSES = ("done", "partial", "later")


def read_methods() -> list[dict[str, str]]:
    """Returns the entries in the order of the file."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))["method"]  # type: ignore[no-any-return]


def methods_page(note: str) -> str:
    """Returns the page: a table per family.

    Args:
        note: The line that says how it is made.
    """
    methods = read_methods()
    counts = Counter(entry["status"] for entry in methods)
    lines = [
        "# Published methods",
        "",
        note,
        "",
        f"{len(methods)} methods are in scope: " + ", ".join(f"{counts[s]} {s}" for s in STATUSES)
        + ". *done* names the test that holds the implementation to the paper.",
    ]  # fmt: skip
    for family, group in groupby(methods, key=lambda entry: entry["family"]):
        lines += ["", f"## {family}", "", "| tier | paper | pass | status |", "|---|---|---|---|"]
        lines += [_row(entry) for entry in group]
    return "\n".join(lines) + "\n"


def _row(entry: dict[str, str]) -> str:
    status = entry["status"]
    if "test" in entry:
        path, _, name = entry["test"].partition("::")
        status += f" ([{name}](../{path}))"
    if "reason" in entry:
        status += f": {entry['reason']}"
    return f"| {entry['tier']} | {entry['title']} | `{entry['pass']}` | {status} |"
