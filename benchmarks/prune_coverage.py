"""How many families prune to half of their FLOPs without being told anything.

`python -m benchmarks.prune_coverage` takes the lightest architecture of every family of `timm` and
forty families of `transformers` through capture and `prune{target=flops:0.5}`, and holds against
bars: what runs, keeps its shapes, equals the dense model with the dropped positions zeroed and
normalizations counting what is kept, and has half of the FLOPs within 2 %. Beside each stands what
Torch-Pruning, without and with hints, and onnxsim make of the same model; their rows are committed
(`benchmarks/prune_rivals.py`). So are ours, each with its commit: a run measures those again that
are missing or failed under other code, and a few others by turns; `--again` all that were measured
under other code. With names (`timm/levit hf/llama`) only these are measured, and nothing is kept.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure import RESULTS, Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.prune_judged import F32, F64, RIGHT, WITHIN, about, outcome, told, verdict
from benchmarks.prune_kept import WHOLE_LIMIT_S, read
from benchmarks.prune_once import LIMIT_S, TARGET, measure_ours
from benchmarks.prune_rivals import RIVALS
from benchmarks.prune_subjects import HF, NAMES, TIMM
from benchmarks.suite import run
from benchmarks.torch_kept import Kept, asked, covered

WANTED = {"timm": 95, "hf": 40}
MIN_SHARE = 96.0
"""Percent of the captured models that have to prune right."""

MAX_LIMITED = 5
PACKAGES = ("torch", "timm", "transformers")
PATH = RESULTS / "prune_coverage-families.jsonl"

CODE = (
    "ir", "frontends/torch", "backends/torch/*.py", "backends/torch/ops", "backends/torch/library",
    "passes/analysis", "passes/cleanup", "passes/fusion", "passes/pruning",
    "benchmarks/prune_once.py", "benchmarks/prune_subjects.py", "tests/passes/pruning/masked.py",
)  # fmt: skip
"""What our rows depend on: capture, what `prune` asks of a graph, and what runs the result. Other
passes are imported with these and not called."""


def measure(name: str) -> dict[str, Any]:
    """Returns what became of a model, and whether it passed; runs in a process of its own."""
    row = measure_ours(name)
    return {**row, "ok": outcome(row) in RIGHT}


def coverage(settings: Settings) -> Iterable[Row]:
    """Every family, ours and the other tools'."""
    questions = {name: asked(name, PACKAGES) for name in NAMES}
    kept, num_measured = covered(
        PATH, questions, measure, lambda name, row: line({"name": name, **row}),
        limit_s=WHOLE_LIMIT_S, settings=settings, places=CODE,
    )  # fmt: skip
    ours = {name: {"name": name, **kept[name].report} for name in NAMES}
    theirs = read()
    for name, row in ours.items():
        others = "; ".join(
            told(tool.name, theirs.get((tool.name, name), {}).get("row")) for tool in RIVALS
        )
        left = 100 * row["achieved"] if "achieved" in row else None
        yield shown(name, left, "% FLOPs left", f"{outcome(row)}: {about(row)}. {others}")
    yield _measured(kept, num_measured)
    yield from _bars(ours)
    for tool in RIVALS:
        yield from _compared(tool.name, ours, theirs)


def _measured(kept: Mapping[str, Kept], num_measured: int) -> Row:
    commits = Counter(kept[name].commit for name in NAMES)
    return shown(
        "models measured now", num_measured, "models",
        ", ".join(f"{count} at {commit}" for commit, count in commits.most_common()),
    )  # fmt: skip


def _bars(ours: Mapping[str, Mapping[str, Any]]) -> Iterable[Row]:
    found = {name: outcome(row) for name, row in ours.items()}
    captured = [name for name in NAMES if found[name] != "uncaptured"]
    limited = [name for name in captured if found[name] == "limited"]
    right = [name for name in captured if found[name] in RIGHT]
    missed = ", ".join(name for name in captured if found[name] == "missed")
    for library, names in (("timm", TIMM), ("hf", HF)):
        yield at_least(f"{library}: families", len(names), WANTED[library], "families")
    yield shown(
        "captured", len(captured), "models",
        ", ".join(name for name in NAMES if name not in captured) or "all of them",
    )  # fmt: skip
    yield at_least(
        f"prune right, of what is captured (half of the FLOPs within {WITHIN:.0%}, or pin-limited)",
        100 * len(right) / max(len(captured), 1), MIN_SHARE, "%",
        f"{len(right) - len(limited)} at half, {len(limited)} limited"
        + (f"; missed: {missed}" if missed else ""),
    )  # fmt: skip
    yield at_most("pin-limited", len(limited), MAX_LIMITED, "models", ", ".join(limited))
    yield held(
        "pin-limited ones reach the least that pins allow", all(ours[n]["met"] for n in limited),
        ", ".join(f"{name} {ours[name]['least']:.3f}" for name in limited),
    )  # fmt: skip
    measured = [ours[name] for name in captured if ours[name]["stage"] == "done"]
    halves = [row for row in measured if "limited" not in row]
    counted = [row["counted"] for row in halves if row["counted"] is not None]
    yield _largest(
        "largest difference from the masked model in f64", (r["error"] for r in measured), F64,
        "relative",
    )  # fmt: skip
    yield _largest(
        "largest difference from the masked model in f32", (r["error_f32"] for r in measured), F32,
        "relative",
    )  # fmt: skip
    yield _largest(
        "FLOPs off half, at most", (_off(row["achieved"]) for row in halves), 100 * WITHIN, "%",
        "as `inspect` counts them",
    )  # fmt: skip
    yield _largest(
        "multiply-accumulates off half, at most, by PyTorch's counter", map(_off, counted),
        100 * WITHIN, "%", "target=macs:0.5, on the generated modules",
    )  # fmt: skip
    yield _largest("slowest: capture and prune", (row["seconds"] for row in measured), LIMIT_S, "s")


def _largest(name: str, values: Iterable[float], bar: float, unit: str, note: str = "") -> Row:
    return at_most(name, max(values, default=None), bar, unit, note)


def _off(left: float) -> float:
    """Returns how far FLOPs are from half, in percent."""
    return 100 * abs(left / TARGET - 1)


def _compared(
    tool: str, ours: Mapping[str, Mapping[str, Any]], rows: Mapping[tuple[str, str], Any]
) -> Iterable[Row]:
    """Returns how many models another tool takes to half of their FLOPs, and that ours are more.

    Models that are not measured with it count for it.
    """
    for library in ("timm", "hf"):
        names = [name for name in NAMES if name.startswith(f"{library}/")]
        theirs = [verdict(rows.get((tool, name), {}).get("row")) for name in names]
        count = sum(outcome(ours[name]) == "half" for name in names)
        note = (
            f"of {len(names)}; {theirs.count('else')} run with other FLOPs, "
            f"{theirs.count('wrong')} give wrong results, {theirs.count('fails')} fail"
        )
        missing = theirs.count("none")
        if missing:
            note += f"; {missing} are not measured"
        yield shown(
            f"{library}: half of the FLOPs with {tool}", theirs.count("half"), "models", note
        )
        what, most = (
            f"{library}: more with regraft than with {tool}",
            theirs.count("half") + missing,
        )
        if missing and count <= most:
            yield Row(what, None, "violations", 0.0, note=f"{missing} unmeasured decide it")
        else:
            counted = f", its {missing} unmeasured ones all counted for it" if missing else ""
            yield held(what, count > most, f"{count} to {most}{counted}")


def line(row: Mapping[str, Any]) -> str:
    """Returns one line about one of our models."""
    left = f"{row['achieved']:.4f}" if "achieved" in row else ""
    return f"{row['name']:32} {outcome(row):10} {left:6} {about(row)}"


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("coverage", "families of timm and transformers at half of their FLOPs", coverage),
)


def some(names: Sequence[str]) -> int:
    """Measures some models, prints a line each, keeps nothing; returns the exit status."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no model `{unknown[0]}`; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    found = []
    for name in names:
        row = measure_ours(name)
        found.append(outcome(row))
        print(line(row), flush=True)
    print(json.dumps({each: found.count(each) for each in dict.fromkeys(found)}))
    return int("missed" in found)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if "/" in word and not word.startswith("-")]
    sys.exit(some(words) if words else run("prune_coverage", __doc__ or "", MEASUREMENTS))
