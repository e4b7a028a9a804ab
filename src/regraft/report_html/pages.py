"""Fills the page templates; needs jinja2 (`pip install regraft[report]`)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.ir.errors import UnsupportedError
from regraft.report_html.graph_view import GraphView, as_data, statuses
from regraft.report_html.line_plots import line_plots
from regraft.report_html.plots import latency_plot, tradeoff_plot
from regraft.units import human_bytes, human_count

_TEMPLATES = Path(__file__).parent / "templates"

MISSING = "jinja2 is not installed; `pip install regraft[report]`"
"""Why no page is written."""


def can_render() -> bool:
    """Returns whether the package that fills templates is installed."""
    return importlib.util.find_spec("jinja2") is not None


def report_page(report: Mapping[str, Any], before: GraphView, after: GraphView) -> str:
    """Returns the page of a conversion.

    Args:
        report: The content of `report.json`; `bench` in it adds plots of latency and size.
        before: The source's graph.
        after: The result's graph.

    Raises:
        UnsupportedError: When jinja2 is missing.
    """
    graph_status = statuses(before, after)
    graphs = {
        "before": as_data(before, graph_status[0]),
        "after": as_data(after, graph_status[1]),
    }
    return _render(
        "report.html.j2", title=Path(report["source"]["path"]).name, report=report,
        operators=_operator_rows(report["operators"]["before"], report["operators"]["after"]),
        outputs=_output_rows(report["check"]["outputs"]),
        layers=[layer for p in report["passes"] for layer in p.get("layers", ())],
        drawings=line_plots([plot for p in report["passes"] for plot in p.get("plots", ())]),
        skipped=_places(report, "skipped"), unproved=_places(report, "unproved"), graphs=graphs,
        **_plots(report.get("bench")),
    )  # fmt: skip


def bench_page(title: str, bench: Mapping[str, Any]) -> str:
    """Returns the page of `bench --html`.

    Raises:
        UnsupportedError: When jinja2 is missing.
    """
    return _render("bench_page.html.j2", title=title, graphs=None, **_plots(bench))


def lines_page(title: str, about: str, plots: Sequence[Mapping[str, Any]]) -> str:
    """Returns a page of plots as `report.json` holds them: title, x, y, lines, note.

    Raises:
        UnsupportedError: When jinja2 is missing.
    """
    return _render(
        "lines_page.html.j2", title=title, about=about, drawings=line_plots(plots), graphs=None
    )


def _plots(bench: Mapping[str, Any] | None) -> dict[str, Any]:
    runs = [] if bench is None else bench["runs"]
    return {"bench": bench, "latency": latency_plot(runs), "tradeoff": tradeoff_plot(runs)}


def _places(report: Mapping[str, Any], kind: str) -> list[tuple[str, str, str]]:
    """Returns (pass, place, reason) of what passes skipped or left unproved."""
    return [(p["name"], s["node"], s["reason"]) for p in report["passes"] for s in p[kind]]


def inspect_page(label: str, report: Mapping[str, Any], view: GraphView) -> str:
    """Returns the page of `inspect --html`.

    Raises:
        UnsupportedError: When jinja2 is missing.
    """
    counts = report["operators"]
    most = max(counts.values(), default=1)
    return _render(
        "inspect.html.j2", title=Path(label).name, report=report,
        operators=[(name, count, 100 * count / most) for name, count in counts.items()],
        graphs={"after": as_data(view, ["same"] * len(view.boxes))},
    )  # fmt: skip


def audit_page(label: str, report: Mapping[str, Any]) -> str:
    """Returns the page of `audit --html`.

    Raises:
        UnsupportedError: When jinja2 is missing.
    """
    names = {
        "both": "as it is", "window": "window alone", "linear": "linear branch alone",
        "none": "no attention",
    }  # fmt: skip
    return _render("audit.html.j2", title=Path(label).name, report=report, names=names, graphs={})


def _render(template: str, **values: Any) -> str:
    if not can_render():
        raise UnsupportedError(
            "no page can be written: jinja2 is not installed", hint="`pip install regraft[report]`"
        )
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "bytes": human_bytes, "count": human_count, "script": _script, "words": _words,
    }  # fmt: skip
    values["style"] = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    values["code"] = (_TEMPLATES / "graph.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(**values)


def _script(data: Any) -> str:
    """Returns JSON that may stand inside a script element: `<` would end it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _words(text: str) -> Any:
    """Returns a sentence whose `quoted` parts stand as code."""
    import markupsafe

    parts = text.split("`")
    if len(parts) % 2 == 0:
        return text
    made = [markupsafe.escape(part) for part in parts]
    made[1::2] = [markupsafe.Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return markupsafe.Markup("").join(made)


def _operator_rows(
    before: Mapping[str, int], after: Mapping[str, int]
) -> list[tuple[str, int, int, float, float]]:
    """Returns (operator, before, after, widths in percent), what changed most first."""
    most = max([*before.values(), *after.values()], default=1)
    names = sorted(
        {*before, *after},
        key=lambda n: (-abs(before.get(n, 0) - after.get(n, 0)), -before.get(n, 0), n),
    )
    pairs = [(name, before.get(name, 0), after.get(name, 0)) for name in names]
    return [(name, a, b, 100 * a / most, 100 * b / most) for name, a, b in pairs]


def _output_rows(outputs: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for name, entry in outputs.items():
        allowed, far = float(entry["allowed"]), float(entry["max_abs"])
        share = far / allowed if allowed else float(far > 0)
        rows.append({"name": name, "share": min(100.0, 100 * share), **entry})
    return rows
