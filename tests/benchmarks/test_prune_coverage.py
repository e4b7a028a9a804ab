"""How the coverage of pruning judges: kept positions of other tools, verdicts, ratios."""

from typing import Any

import numpy as np
import pytest

from benchmarks.prune_attempts import next_ratio
from benchmarks.prune_coverage import _compared
from benchmarks.prune_judged import outcome, verdict
from benchmarks.prune_masking import kept_along_axes
from benchmarks.prune_subjects import HF, NAMES, TIMM

OURS: dict[str, Any] = {
    "stage": "done", "shape": True, "met": True, "error": 1e-15, "error_f32": 1e-7,
    "rounding_f32": 1e-7,
}  # fmt: skip
THEIRS: dict[str, Any] = {"runs": True, "shape": True, "counted": 0.5, "error": 1e-7}


def test_the_list_has_every_family_once() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(TIMM) + len(HF)
    assert len(TIMM) >= 95
    assert len(HF) >= 40


def test_kept_positions_are_read_from_values() -> None:
    dense = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)
    kept = [np.array([0, 2, 5]), np.array([1, 3]), np.array([0, 1, 2])]
    found = kept_along_axes(dense, dense[np.ix_(*kept)])
    assert found is not None
    assert all(np.array_equal(a, b) for a, b in zip(found, kept, strict=True))


def test_equal_values_do_not_mislead_the_positions_of_a_vector() -> None:
    dense = np.array([1.0, 2.0, 1.0, 3.0], np.float32)
    found = kept_along_axes(dense, np.array([2.0, 1.0], np.float32))
    assert found is not None
    assert found[0].tolist() == [1, 2]


def test_values_that_were_changed_tell_no_positions() -> None:
    dense = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    assert kept_along_axes(dense, dense[:3] * 2) is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "half"),
        ({"stage": "capture"}, "uncaptured"),
        ({"stage": "prune"}, "missed"),
        ({"shape": False}, "missed"),
        ({"met": False}, "missed"),
        ({"error": 1e-9}, "missed"),
        ({"error_f32": 1e-4}, "missed"),
        ({"error_f32": 1e-4, "rounding_f32": 1e-4}, "half"),
        ({"limited": "an output"}, "limited"),
    ],
)
def test_our_models_are_judged_by_every_condition(changed: dict[str, Any], expected: str) -> None:
    assert outcome({**OURS, **changed}) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "half"),
        ({"counted": 0.52}, "else"),
        ({"error": 1e-3}, "wrong"),
        ({"shape": False}, "wrong"),
        ({"runs": False}, "fails"),
    ],
)
def test_models_of_other_tools_are_judged_alike(changed: dict[str, Any], expected: str) -> None:
    assert verdict({**THEIRS, **changed}) == expected
    assert verdict(None) == "none"


def test_no_tool_loses_by_what_is_not_measured() -> None:
    ours: dict[str, Any] = dict.fromkeys(NAMES, OURS)
    rows = {("tool", name): {"row": {**THEIRS, "runs": False}} for name in NAMES}
    assert all(row.met is not False for row in _compared("tool", ours, rows))
    del rows["tool", "hf/llama"]
    found = {row.name: row for row in _compared("tool", ours, rows)}
    bar = found["hf: more with regraft than with tool"]
    assert bar.met
    assert bar.note == f"{len(HF)} to 1, its 1 unmeasured ones all counted for it"
    ours["hf/vit"] = {**OURS, "met": False}
    rows |= {("tool", f"hf/{name}"): {"row": THEIRS} for name in HF}
    del rows["tool", "hf/vit"]
    missed = [row for row in _compared("tool", ours, rows) if row.met is False]
    assert [row.name for row in missed] == [bar.name]
    assert missed[0].value is None
    assert "1 unmeasured" in missed[0].note


@pytest.mark.parametrize("pinned", [0.0, 0.2, 0.4])
def test_ratios_close_in_on_half_of_the_flops(pinned: float) -> None:
    """What outputs pin does not fall with the ratio."""
    known: dict[float, float] = {}
    for _ in range(8):
        ratio = next_ratio(known)
        known[ratio] = pinned + (1 - pinned) * (1 - ratio) ** 2
    assert min(abs(left / 0.5 - 1) for left in known.values()) <= 0.01
