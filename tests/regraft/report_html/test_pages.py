"""Pages: whole, self-contained, safe against names that look like markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import regraft
from regraft.inspection import inspect_module
from regraft.ir.errors import UnsupportedError
from regraft.ir.text import parse_module
from regraft.report_html import inspect_page, pages, view_of
from tests.cli.snapshot import run
from tests.cli.workplace import populate

_VOID = {"meta", "input", "br", "hr", "img", "link"}


class _Checker(HTMLParser):
    """Collects tags, and what is opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attrs: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attrs += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> dict[str, Any]:
    """Asserts that a page is well-formed and fetches nothing; returns its graph data."""
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert not [a for a in checker.attrs if a[1] in ("src", "href", "srcset", "data", "action")]
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(", text)
    match = re.search(r'<script type="application/json" id="graph-data">(.*?)</script>', text, re.S)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    populate(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_convert_writes_the_page(workplace: Path) -> None:
    result = regraft.convert("model.onnx", "out", dtype="fp16")
    text = (workplace / "out" / "report.html").read_text(encoding="utf-8")
    data = check_page(text)
    assert result.report["page"] == "report.html"
    assert set(data) == {"before", "after"}
    assert "transpose" in data["before"]["ops"]
    assert "transpose" not in data["after"]["ops"]
    assert {"gone", "same"} <= set(data["before"]["status"])
    assert "new" in data["after"]["status"]  # the conversions
    for word in ("outputs checked", "rounded to f16", "largest difference", "Left alone"):
        assert word in text
    assert "Latency" not in text  # nothing was measured


RUNS = [
    {"path": "a<b>.onnx", "median_ms": 2.0, "p10_ms": 1.0, "p90_ms": 4.0, "ratio": 1.0,
     "interval": [1.0, 1.0], "bytes": 4_000_000, "max_rel": 0.0},
    {"path": "b.onnx", "median_ms": 1.0, "p10_ms": 0.9, "p90_ms": 1.2, "ratio": 0.5,
     "interval": [0.4, 0.6], "bytes": 1_000_000, "max_rel": 2e-3},
]  # fmt: skip
BENCH = {"runs": RUNS, "rounds": 50, "threads": 1, "binding": {"batch": 2}}


def test_latency_and_size_are_plotted_when_they_were_measured(workplace: Path) -> None:
    module = regraft.load("model.onnx")
    report = dict(regraft.convert("model.onnx", "out").report)
    text = pages.report_page({**report, "bench": BENCH}, view_of(module), view_of(module))
    check_page(text)
    assert text.count("<svg") == 2
    assert "a&lt;b&gt;.onnx" in text
    assert "a<b>" not in text
    assert "b.onnx: 1 ms, 1 MB, outputs differ by 0.002 of the largest" in text


def test_convert_measures_when_asked(workplace: Path) -> None:
    report = regraft.convert("model.onnx", "out", bench=True).report
    first, made = report["bench"]["runs"]
    assert (first["path"], made["path"]) == ("model.onnx", "out")
    assert first["bytes"] == (workplace / "model.onnx").stat().st_size
    assert made["bytes"] == (workplace / "out" / "model.onnx").stat().st_size
    assert "Size against latency" in (workplace / "out" / "report.html").read_text("utf-8")


def test_source_of_a_measurement_is_the_one_before_passes(workplace: Path) -> None:
    module = regraft.load("model.onnx")
    report = regraft.convert(module, "out", bench=True).report
    assert [run["max_rel"] for run in report["bench"]["runs"]] == [0.0, 0.0]
    assert report["bench"]["runs"][0]["bytes"] is None  # it has no file: no plot of sizes
    assert "Size against latency" not in (workplace / "out" / "report.html").read_text("utf-8")


def test_places_that_nothing_proved_are_listed(workplace: Path) -> None:
    module = regraft.load("model.onnx")
    report = dict(regraft.convert("model.onnx", "out").report)
    place = {"node": "att<n", "reason": "more than 160 nodes compute it"}
    passes = [{**report["passes"][0], "unproved": [place]}, *report["passes"][1:]]
    text = pages.report_page({**report, "passes": passes}, view_of(module), view_of(module))
    check_page(text)
    assert "not proved by itself" in text
    assert "att&lt;n" in text
    assert place["reason"] in text


def test_names_that_look_like_markup_are_text() -> None:
    name = "</script><b>&amp;`x"
    module = parse_module(f'graph(%x : f32[4]) {{\n%"{name}" = tanh(%x)\nreturn %"{name}"\n}}\n')
    text = inspect_page("<i>.rg", inspect_module(module, {}), view_of(module))
    data = check_page(text)
    assert name in data["after"]["name"]
    assert "<b>" not in text
    assert "<i>" not in text


def test_without_jinja2_the_report_says_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("regraft.conversion.can_render", lambda: False)
    code, out, _ = run(["convert", "model.onnx", "-o", "out"], capsys)
    assert code == 0
    assert "report.html: no (jinja2 is not installed; `pip install regraft[report]`)" in out
    assert not (workplace / "out" / "report.html").exists()
    report = json.loads((workplace / "out" / "report.json").read_text())
    assert report["page"].startswith("no (jinja2")
    monkeypatch.setattr(pages, "can_render", lambda: False)
    module = regraft.load("model.onnx")
    with pytest.raises(UnsupportedError, match="jinja2 is not installed"):
        inspect_page("model", inspect_module(module, {}), view_of(module))


def test_inspect_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["inspect", "model.onnx", "--html", "page.html"], capsys)
    assert code == 0, err
    data = check_page((workplace / "page.html").read_text(encoding="utf-8"))
    assert set(data) == {"after"}
    code, _, err = run(["inspect", "model.onnx", "--html", "page.html"], capsys)
    assert code == 2
    assert "--force" in err
    assert run(["inspect", "model.onnx", "--html", "page.html", "--force"], capsys)[0] == 0
