"""What other tools make of the models of `prune_subjects`, in committed rows.

Each is called as its documentation says, on the same models, inputs and seeds as ours.
`python -m benchmarks.prune_rivals` measures the rows that are missing, with the packages that
`make prune-rivals` installs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.prune_kept import WHOLE_LIMIT_S, rows
from benchmarks.prune_once import LIMIT_S
from benchmarks.prune_onnxsim import measure_onnxsim
from benchmarks.prune_subjects import NAMES
from benchmarks.prune_torch_pruning import measure_hints, measure_zero_config


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that is compared.

    Args:
        name: What it is called here.
        measure: Returns its row of a model.
        package: Its package.
        version: The version that the rows are of.
    """

    name: str
    measure: Callable[[str], dict[str, Any]]
    package: str
    version: str


RIVALS: tuple[Tool, ...] = (
    Tool("torch-pruning", measure_zero_config, "torch-pruning", "1.6.1"),
    Tool("torch-pruning-hints", measure_hints, "torch-pruning", "1.6.1"),
    Tool("onnxsim", measure_onnxsim, "onnxsim", "0.8.1"),
)

RECIPE = 1
"""Raised when what is asked of the tools changes: rows of another one are measured again."""


def question(tool: Tool) -> str:
    """Returns what a row answers: versions and recipe."""
    return f"{tool.package} {tool.version}, recipe {RECIPE}, {LIMIT_S} s of processor time"


def main() -> None:
    """Measures what the committed rows lack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tools", nargs="*", help="default: all of them")
    parser.add_argument("--only", action="append", metavar="MODEL", help="repeatable")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after this time")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    for tool in RIVALS:
        if args.tools and tool.name not in args.tools:
            continue
        found = importlib.metadata.version(tool.package)
        if found != tool.version:
            parser.error(f"{tool.package} {found} is installed, rows are of {tool.version}")
        for row in rows(
            tool.name, tool.measure, args.only or NAMES, question(tool), WHOLE_LIMIT_S, end=end
        ):
            print(json.dumps({"tool": tool.name, **row}), flush=True)


if __name__ == "__main__":
    main()
