"""Figures that take minutes, kept by name and version, so that a run that was stopped goes on."""

import json
from collections.abc import Callable
from typing import Any

from benchmarks.measure import CACHE, Settings

Figures = dict[str, Any]


def kept(
    topic: str, key: str, version: int, settings: Settings, make: Callable[[], Figures]
) -> Figures:
    """Returns figures, made once for a key and a version.

    Args:
        topic: Folder under `.cache/bench`.
        key: What is measured, as a file name.
        version: Counted up where what is measured changes.
        settings: `again` measures what is kept, too.
        make: Measures.
    """
    path = CACHE / topic / f"{key}-{version}.json"
    if path.is_file() and not settings.again:
        found: Figures = json.loads(path.read_text())
        return found
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(made))
    beside.replace(path)
    return made
