"""The latency table of the README, made from the file of results that is committed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.measure import RESULTS

FILE = RESULTS / "fuse-amd-epyc-2c-vnni.json"
_ROW = re.compile(r"^(?P<model>\S+) at (?P<shape>\S+): ort-cpu / best peer$")
_NOTE = re.compile(r"^(?P<peer>[\w-]+); \S+ \[(?P<low>[\d.]+), (?P<high>[\d.]+)\] over")


def latency_table() -> str:
    """Returns one row per model, with the ratio at each of its shapes.

    Raises:
        ValueError: When a row of the results reads otherwise than the benchmark writes it.
    """
    results = json.loads(FILE.read_text(encoding="utf-8"))
    cells: dict[str, list[str]] = {}
    for model, cell in _cells(results["measurements"]["latency"]["rows"]):
        cells.setdefault(model, []).append(cell)
    width = max(map(len, cells.values()))
    lines = [
        "Latency of the `ort-cpu` file over the fastest of the original with every optimization",
        "of ONNX Runtime, onnxslim, onnxsim and the transformer optimizer, one thread, at three",
        "shapes (median of the rounds' ratios, 95 % interval, the fastest peer; measured on",
        f"{results['hardware']['cpu']}, `benchmarks/results/{FILE.name}`):",
        "",
        f"| model |{' |' * width}",
        f"|{'---|' * (width + 1)}",
        *(
            f"| {' | '.join([model, *found, *[''] * (width - len(found))])} |"
            for model, found in cells.items()
        ),
    ]
    return "\n".join(lines)


def _cells(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        named = _ROW.match(row["name"])
        if named is None:
            continue  # counts of shapes
        note = _NOTE.match(row["note"])
        if note is None:
            raise ValueError(f"{FILE.name}: no peer and interval in `{row['note']}`")
        low, high = float(note["low"]), float(note["high"])
        span = f"{low:.2f} to {high:.2f}, {note['peer']}"
        yield named["model"], f"{named['shape']}: {row['value']:.2f} ({span})"
