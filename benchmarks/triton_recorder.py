"""A plugin of pytest that notes what tests of kernels found, `-p benchmarks.triton_recorder`.

`TRITON_RECORD` names the file: tests with their outcome and seconds, errors beside their bounds,
operators that `opcheck` was given, and the versions of what ran.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SELF = "test_harness.py"
"""Tests of the harness itself, which hold errors beyond their bounds against it."""
_tests: dict[str, dict[str, Any]] = {}
_ratios: dict[str, list[float]] = {}
_checked: set[str] = set()
_running: list[str] = []


def pytest_configure() -> None:
    """Listens to the bounds of the harness and to `opcheck`."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from tests.backends.triton import harness

    closeness, opcheck = harness.closeness, torch.library.opcheck

    def noted(*args: Any, **named: Any) -> harness.Closeness:
        found = closeness(*args, **named)
        bounds = ((found.error, found.bound), (found.norm, found.norm_bound))
        ratio = max(error / bound if bound else float(error > 0) for error, bound in bounds)
        if _SELF not in _running[-1]:
            _ratios.setdefault(_running[-1], []).append(ratio)
        return found

    def checked(op: Any, *args: Any, **named: Any) -> Any:
        result = opcheck(op, *args, **named)
        _checked.add(getattr(op, "_qualname", str(op)))
        return result

    harness.closeness, torch.library.opcheck = noted, checked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Says which test runs."""
    _running.append(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes outcome and seconds of a test, its setup among them."""
    found = _tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
    found["seconds"] += report.duration
    if report.outcome != "passed":
        found["outcome"] = report.outcome


def pytest_sessionfinish() -> None:
    """Writes what was noted."""
    import numpy as np
    import triton
    from torch._library.custom_ops import CustomOpDef

    from benchmarks.triton_launches import modules

    operators = {
        item._qualname
        for module in modules()
        for item in vars(module).values()
        if isinstance(item, CustomOpDef)
    }
    record = {
        "triton": triton.__version__,
        "numpy": np.__version__,
        "tests": _tests,
        "ratios": {name: max(ratios) for name, ratios in _ratios.items()},
        "checks": sum(map(len, _ratios.values())),
        "operators": sorted(operators),
        "checked": sorted(_checked),
    }
    Path(os.environ["TRITON_RECORD"]).write_text(json.dumps(record), encoding="utf-8")
