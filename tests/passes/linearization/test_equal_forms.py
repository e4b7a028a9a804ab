"""Forms of linear attention that have to be equal are, as `benchmarks.linearize` measures them."""

from __future__ import annotations

import sys

import pytest

from benchmarks.linearize_equal import MEASUREMENTS
from benchmarks.measure import Measurement, Settings


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=[each.name for each in MEASUREMENTS])
def test_every_bar_is_met(measurement: Measurement) -> None:
    rows = list(measurement.run(Settings(sys.executable, "", 60.0, 1)))
    assert rows
    assert [row.name for row in rows if not row.met] == []
