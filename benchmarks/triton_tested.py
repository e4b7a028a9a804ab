"""The tests of kernels in Triton's interpreter: how far from f64, operators, named checks, time.

With the Triton that is installed, with the oldest that is supported and with the newest, which
`make triton-bench` puts beside it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import (
    CACHE,
    ROOT,
    Measurement,
    Row,
    Settings,
    at_least,
    at_most,
    held,
    shown,
)
from benchmarks.triton_packages import sources

OTHERS: Mapping[str, str] = {"3.6": "3.6.0", "3.9": "3.9.0"}
"""Versions of Triton that lie in folders of their own, 3.6 with the numpy below 2.4 that its
interpreter needs.
"""
_VERSION = 1
_CI_S, _CI_CORES = 240.0, 2
_FOLDER = "tests/backends/triton"
_NAMED: Mapping[str, str] = {
    "AdaSplash: tiles without weight are left out": "test_tiles_without_weight_are_left_out",
    "Cut Your Losses: what is below the threshold": (
        "test_the_filter_leaves_out_what_is_below_its_threshold"
    ),
    "FlashDecoding++: a range that scores leave": (
        "test_a_range_that_scores_leave_falls_back_to_the_exact_maximum"
    ),
    "Two-Pass Softmax: long rows are read twice": "test_softmax_of_long_rows_reads_them_twice",
    "lightning attention: a decoder with its decay": (
        "test_a_linearized_decoder_passes_its_self_test[lightning"
    ),
    "MixLLM: products are whole until groups are scaled": (
        "test_integer_products_are_exact_until_they_are_scaled"
    ),
    "export keeps operators as single nodes": "test_export_keeps_an_operator_as_one_node",
    "export to ONNX goes through references": "test_a_captured_call_is_its_reference_in_onnx",
    "the harness refuses products of bf16": "test_products_of_bf16_are_refused",
}
"""What is named in the table -> a part of the names of its tests."""


def _recorded(folder: Path | None, settings: Settings) -> Figures:
    """Runs the tests that are not slow in one process, and returns what was noted.

    Args:
        folder: Comes before everything that is installed.
        settings: Of the run.
    """

    def make() -> Figures:
        with tempfile.TemporaryDirectory() as work:
            record = Path(work) / "record.json"
            path = [str(folder)] if folder is not None else []
            path += ["src", ".", *filter(None, [os.environ.get("PYTHONPATH")])]
            done = subprocess.run(
                [settings.python, "-m", "pytest", _FOLDER, "-m", "not slow", "-q", "-n0",
                 "-p", "no:cacheprovider", "-p", "benchmarks.triton_recorder"],
                cwd=ROOT, capture_output=True, text=True, check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1",
                     "TRITON_INTERPRET": "1", "TRITON_RECORD": str(record)},
            )  # fmt: skip
            if not record.is_file():
                raise RuntimeError(f"pytest {_FOLDER}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            found: Figures = json.loads(record.read_text(encoding="utf-8"))
        return found

    label = "installed" if folder is None else folder.name
    return kept("triton", f"tests-{label}-{_tests_digest()}-{sources()}", _VERSION, settings, make)


def _tests_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / _FOLDER).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _outcomes(found: Figures, label: str) -> Iterator[Row]:
    tests: Mapping[str, Any] = found["tests"]
    passed = [name for name, test in tests.items() if test["outcome"] == "passed"]
    failed = [name.rpartition("::")[2] for name, t in tests.items() if t["outcome"] == "failed"]
    yield at_least(f"{label}: tests that pass", float(len(passed)), 500.0, "tests",
                   f"numpy {found['numpy']}")  # fmt: skip
    yield at_most(f"{label}: tests that fail", float(len(failed)), 0.0, "tests",
                  ", ".join(failed[:5]))  # fmt: skip
    worst = max(found["ratios"], key=found["ratios"].__getitem__)
    yield at_most(
        f"{label}: largest error against f64, of its bound", found["ratios"][worst], 1.0, "x",
        f"{found['checks']} results and gradients; {worst.rpartition('/')[2]}",
    )  # fmt: skip


def _installed(settings: Settings) -> Iterator[Row]:
    found = _recorded(None, settings)
    label = f"Triton {found['triton']}"
    yield from _outcomes(found, label)
    files: dict[str, list[float]] = {}
    for name, ratio in found["ratios"].items():
        files.setdefault(Path(name.partition("::")[0]).stem.removeprefix("test_"), []).append(ratio)
    for name, ratios in sorted(files.items()):
        yield shown(f"{name}: largest error, of its bound", max(ratios), "x",
                    f"{len(ratios)} tests")  # fmt: skip
    seconds = sum(test["seconds"] for test in found["tests"].values())
    yield at_most(f"time of the tests in CI, on {_CI_CORES} cores", seconds / _CI_CORES, _CI_S,
                  "s", f"{seconds:.0f} s of one core here")  # fmt: skip
    missing = sorted(set(found["operators"]) - set(found["checked"]))
    yield at_most("operators that `opcheck` was not given", float(len(missing)), 0.0, "of them",
                  ", ".join(missing) or f"{len(found['operators'])} operators pass")  # fmt: skip
    for name, part in _NAMED.items():
        outcomes = [test["outcome"] for test_name, test in found["tests"].items()
                    if part in test_name]  # fmt: skip
        yield held(name, bool(outcomes) and set(outcomes) == {"passed"}, f"{len(outcomes)} tests")


def _other(minor: str, settings: Settings) -> Iterator[Row]:
    folder = CACHE / "triton" / f"triton-{OTHERS[minor]}"
    if not (folder / "triton").is_dir():
        raise FileNotFoundError(f"{folder} is missing; `make triton-bench` installs Triton there")
    found = _recorded(folder, settings)
    yield held(f"the Triton is {minor}", found["triton"].startswith(f"{minor}."), found["triton"])
    yield from _outcomes(found, f"Triton {found['triton']}")


MEASUREMENTS = (
    Measurement("tests", "results, gradients, operators and named checks", _installed),
    *(
        Measurement(
            f"tests of {minor}", f"the same tests with Triton {minor}",
            functools.partial(_other, minor),
        )
        for minor in OTHERS
    ),
)  # fmt: skip
