"""Which models of a coverage are measured again, and the file that keeps the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.torch_kept import TURNS, Kept, due, read, write

QUESTIONS = {f"model{i}": "asked" for i in range(20)}


def _kept(name: str, *, ok: bool = True, asked: str = "asked", code: str = "code") -> Kept:
    return Kept(name, asked, code, "abc", {"ok": ok, "stage": "done"})


def test_missing_changed_and_failed_models_are_due() -> None:
    lines = {name: _kept(name) for name in QUESTIONS}
    del lines["model3"]
    lines["model4"] = _kept("model4", asked="something else")
    assert due(QUESTIONS, lines, "code", again=False) == ["model3", "model4"]
    lines["model5"] = _kept("model5", ok=False)
    assert "model5" not in due(QUESTIONS, lines, "code", again=False)
    assert "model5" in due(QUESTIONS, lines, "other code", again=False)


def test_models_that_passed_under_other_code_take_turns() -> None:
    lines = {name: _kept(name) for name in QUESTIONS}
    turns = [due(QUESTIONS, lines, f"code {i}", again=False) for i in range(200)]
    assert all(len(names) == TURNS for names in turns)
    assert {name for names in turns for name in names} == set(QUESTIONS)
    assert due(QUESTIONS, lines, "code", again=True) == []
    assert due(QUESTIONS, lines, "other code", again=True) == list(QUESTIONS)


def test_a_model_that_ran_out_of_time_is_measured_again_under_the_same_code() -> None:
    stopped = Kept("model0", "asked", "code", "abc", {"ok": False, "stage": "limit"})
    assert due({"model0": "asked"}, {"model0": stopped}, "code", again=False) == ["model0"]


def test_lines_survive_the_file(tmp_path: Path) -> None:
    met = Counter({"aten.add.Tensor": 3})
    lines = {
        "b": _kept("b"),
        "a": Kept("a", "asked", "code", "abc", {"ok": True, "stage": "done", "overloads": met}),
    }
    path = tmp_path / "kept.jsonl"
    write(path, lines)
    assert read(path) == lines
    assert [line.split('"')[3] for line in path.read_text().splitlines()] == ["a", "b"]
