"""The page of curves of pruned small models."""

import json
from pathlib import Path

import pytest

from benchmarks.prune_curves_page import write_page


def _row(fraction: int, method: str, value: float, achieved: float) -> dict[str, object]:
    return {
        "name": f"digit-cnn: {fraction}% of the FLOPs by {method}", "value": value, "unit": "%",
        "note": f"dense 98.5, achieved {achieved}",
    }  # fmt: skip


def test_every_method_is_a_line_that_begins_at_the_dense_model(tmp_path: Path) -> None:
    rows = [_row(80, "l2", 60.0, 0.8), _row(80, "dp+obs", 98.0, 0.8), _row(50, "l2", 20.0, 0.5)]
    results = tmp_path / "prune_quality-cpu.json"
    entry = {"measurements": {"curve-digit-cnn": {"rows": rows}, "solver": {"rows": []}}}
    results.write_text(json.dumps(entry))
    page = write_page(results)
    assert page == tmp_path / "prune_quality-cpu.html"
    text = page.read_text()
    assert "<h2>digit-cnn</h2>" in text
    assert text.count("<polyline") == 2
    assert "0.5: 20, 0.8: 60, 1: 98.5" in text
    assert "solver, repaired" in text


def test_without_curves_there_is_no_page_and_another_row_is_an_error(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"measurements": {"solver": {"rows": []}}}))
    assert write_page(results) is None
    wrong = {"name": "digit-cnn: dense", "value": 1.0, "unit": "%", "note": ""}
    results.write_text(json.dumps({"measurements": {"curve-digit-cnn": {"rows": [wrong]}}}))
    with pytest.raises(ValueError, match="no row of a curve"):
        write_page(results)
