"""Measures how good pruned models are and exits 1 when a bar is missed.

`python -m benchmarks.prune_quality [--only NAME] [--list]` prints a table and writes
`benchmarks/results/prune_quality-<cpu>.json`. Each family of methods is a file of its own,
`benchmarks/prune_quality_<family>.py`, whose measurements are merged here; curves are drawn on a
page beside the file of results. The small models (`make small-models`) and the real ones, with
Torch-Pruning (`make models prune-models recovery-models`), have to be there; `make prune-quality`
does all of it.
"""

import importlib
import sys
from pathlib import Path

from benchmarks.measure import Measurement
from benchmarks.prune_curves_page import write_page
from benchmarks.suite import result_path, run

FAMILIES: tuple[str, ...] = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("prune_quality_*.py"))
)


def measurements() -> tuple[Measurement, ...]:
    """Returns the measurements of every family, in order of their names."""
    return tuple(
        measurement
        for family in FAMILIES
        for measurement in importlib.import_module(f"benchmarks.{family}").MEASUREMENTS
    )


if __name__ == "__main__":
    status = run("prune_quality", __doc__, measurements())
    if (results := result_path("prune_quality")).exists():
        write_page(results)
    sys.exit(status)
