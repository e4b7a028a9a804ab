"""The curves of `curve-*` as a page: quality of small models by what is left of their FLOPs.

`python -m benchmarks.prune_quality` writes it beside the file of results, from which it is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.report_html import lines_page

CURVE = "curve-"
NAMES = {
    "dp+obs": "solver, repaired", "l2+obs": "norms, repaired", "dp": "solver", "l2": "norms",
}  # fmt: skip
_ROW = re.compile(r": \d+% of the FLOPs by (?P<method>\S+)$")
_NOTE = re.compile(r"dense (?P<dense>[\d.]+), achieved (?P<achieved>[\d.]+)")


def write_page(results: Path) -> Path | None:
    """Writes the page of a file of results beside it; None where no curve was measured."""
    measured = json.loads(results.read_text(encoding="utf-8"))["measurements"]
    plots = [
        _plot(name.removeprefix(CURVE), entry["rows"])
        for name, entry in sorted(measured.items())
        if name.startswith(CURVE) and entry["rows"]
    ]
    if not plots:
        return None
    about = "quality without training, on data that nothing was fitted to, one seed each"
    page = results.with_suffix(".html")
    page.write_text(lines_page("Pruned small models", about, plots), encoding="utf-8")
    return page


def _plot(model: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the plot of a model; the dense one is the point at all of the FLOPs."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found, note = _ROW.search(row["name"]), _NOTE.search(row["note"])
        if found is None or note is None:
            raise ValueError(f"`{row['name']}` is no row of a curve: {row['note']}")
        line = points.setdefault(found["method"], [(1.0, float(note["dense"]))])
        line.append((float(note["achieved"]), row["value"]))
    unit = "% of digits right" if rows[0]["unit"] == "%" else "nats per character"
    return {
        "title": model, "x": "FLOPs, of the dense model", "y": unit,
        "note": "Calibrated on training data; figures are those of data that was held out.",
        "lines": [
            {"name": name, "points": sorted(points[method]), "chosen": None}
            for method, name in NAMES.items()
            if method in points
        ],
    }  # fmt: skip
