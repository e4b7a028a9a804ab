from __future__ import annotations

from pathlib import Path

import pytest

from regraft.backends.onnx.legalize import MEASURED, shipped_table
from regraft.backends.onnx.legalize.costs import (
    MIN_GAIN,
    CostTable,
    Entry,
    Features,
    parse_table,
    read_table,
)
from regraft.ir.errors import InputError


def _table(*rows: tuple[int, float, float]) -> CostTable:
    entries = [
        Entry("attention", {"causal": "no"}, {"S": size}, {"plain": plain, "fused": fused})
        for size, plain, fused in rows
    ]
    return CostTable("ort-cpu", {"cpu": "test"}, tuple(entries))


def _choose(table: CostTable, *sizes: int, causal: str = "no") -> tuple[str, str]:
    features = Features({"causal": causal}, {"S": sizes})
    choice = table.choose("attention", features, ["plain", "fused"])
    return choice.form, choice.reason


def test_a_form_that_gains_enough_is_taken() -> None:
    form, reason = _choose(_table((16, 100, 90)), 16)
    assert form == "fused"
    assert "0.90x of plain" in reason


def test_a_gain_below_the_limit_is_not_taken() -> None:
    form, reason = _choose(_table((16, 100, 100 * (1 - MIN_GAIN) + 0.1)), 16)
    assert form == "plain"
    assert "no form gains 3%" in reason


def test_the_nearest_size_counts_on_a_logarithmic_scale() -> None:
    table = _table((16, 100, 50), (1024, 100, 200))
    assert _choose(table, 100)[0] == "fused"  # 128 is the middle
    assert _choose(table, 200)[0] == "plain"


def test_a_form_that_loses_at_a_possible_size_is_not_taken_and_the_reason_says_so() -> None:
    table = _table((16, 100, 120), (1024, 100, 50))
    form, reason = _choose(table, 16, 1024)
    assert form == "plain"
    assert "fused takes 0.50x to 1.20x by size" in reason
    assert _choose(table, 1024)[0] == "fused"


def test_another_kind_is_not_measured() -> None:
    assert _choose(_table((16, 100, 50)), 16, causal="yes") == ("plain", "not measured")


def test_a_form_that_was_not_measured_everywhere_is_not_taken() -> None:
    known = _table((16, 100, 50)).entries
    gap = Entry("attention", {"causal": "no"}, {"S": 1024}, {"plain": 100})
    assert _choose(CostTable("ort-cpu", {}, (*known, gap)), 16, 1024)[0] == "plain"


def test_a_table_survives_its_text() -> None:
    table = _table((16, 100, 90), (32, 200, 210))
    again = parse_table(table.to_json(), "text")
    assert again.entries == table.entries
    assert again.machine == table.machine


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json` cannot be read"):
        read_table(tmp_path / "absent.json")
    for text in ("{", "[]", '{"format": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=r"bad\.json` is no cost table"):
            read_table(tmp_path / "bad.json")
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(InputError, match="has format 0, expected 1"):
        read_table(tmp_path / "old.json")


@pytest.mark.parametrize("target", MEASURED)
def test_the_shipped_table_names_its_machine_and_its_standard_forms(target: str) -> None:
    table = shipped_table(target)
    assert table is not None
    assert {"cpu", "onnxruntime", "threads"} <= set(table.machine)
    assert len(table.entries) > 100
    assert all(min(entry.ns.values()) > 0 for entry in table.entries)
