"""Rows of a coverage: every model, what they add up to, and the overloads that were met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.measure import Row, at_least, held, shown
from benchmarks.torch_kept import Kept

Report = Mapping[str, Any]


def told(name: str, report: Report) -> str:
    """Returns one line about a model."""
    return f"{name}: {_passed(report)}" if report["ok"] else f"{name}: FAILED at {_failed(report)}"


def rows_of(label: str, lines: Mapping[str, Kept], num_measured: int, least: int) -> Iterator[Row]:
    """Yields what the models add up to, then the row of each.

    A model that `torch.export` alone refuses counts as one that has to pass only when it is a
    mixture of experts; the other ones are listed with the export's reason.

    Args:
        label: Name of the library.
        lines: Line of every model.
        num_measured: How many of them were measured in this run.
        least: Models that have to pass.
    """
    reports = {name: line.report for name, line in lines.items()}
    needed = [report for report in reports.values() if _counts(report)]
    failed = sum(not report["ok"] for report in needed)
    passed = sum(report["ok"] for report in reports.values())
    refused = len(reports) - len(needed)
    when = Counter(line.commit for line in lines.values())
    yield at_least(f"{label}: models with equal outputs", passed, least, "models")
    yield at_least(
        f"{label}: of what torch.export exports, and mixtures of experts",
        100 * (1 - failed / max(len(needed), 1)), 100, "%",
        f"{len(needed) - failed} of {len(needed)}; torch.export refuses {refused} others",
    )  # fmt: skip
    yield shown(
        f"{label}: measured in this run", num_measured, "models",
        "; ".join(f"{count} lines of commit {commit}" for commit, count in when.most_common()),
    )  # fmt: skip
    met: Counter[str] = Counter()
    for report in reports.values():
        met.update(report["overloads"])
    listed = ", ".join(f"{target} {count}" for target, count in met.most_common())
    yield shown(f"{label}: overloads met", len(met), "overloads", listed)
    for name, line in lines.items():
        text = _passed(line.report) if line.report["ok"] else _failed(line.report)
        text += f"; measured at {line.commit}"
        if _counts(line.report) or line.report["ok"]:
            yield held(f"{label}: {name}", line.report["ok"], text)
        else:
            yield shown(f"{label}: {name} (torch.export refuses)", None, "", text)


def _counts(report: Report) -> bool:
    return report["refused"] is None or report.get("kind") == "experts"


def _passed(report: Report) -> str:
    calls = sum(report["overloads"].values())
    text = (
        f"{report['kind']}: {calls} calls of {len(report['overloads'])} overloads, "
        f"{report['nodes']} nodes; largest difference {report['onnx']:.1e} in ONNX Runtime, "
        f"{report['torch']:.1e} in the generated module; {report['sizes']} bindings"
    )
    return text + (f"; torch.export alone: {report['refused']}" if report["refused"] else "")


def _failed(report: Report) -> str:
    by = f"; torch.export alone: {report['refused']}" if report["refused"] else ""
    return f"{report['stage']}: {report['reason']}{by}"
