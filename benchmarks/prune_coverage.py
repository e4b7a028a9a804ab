"""How many families prune to half of their FLOPs without being told anything.

`python -m benchmarks.prune_coverage` takes the lightest architecture of every family of `timm` and
forty families of `transformers` through capture and `prune{target=flops:0.5}`, and holds against
bars: what runs, keeps its shapes, equals the dense model with the dropped positions zeroed and
normalizations counting what is kept, and has half of the FLOPs within 2 %. Beside each stands what
Torch-Pruning, without and with hints, and onnxsim make of the same model; their rows are committed
(`benchmarks/prune_rivals.py`). Rows of ours are measured again when the code has changed; with
names (`timm/levit hf/llama`), only these are, and printed as they come.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.prune_kept import WHOLE_LIMIT_S, code, read, rows
from benchmarks.prune_once import LIMIT_S, TARGET, measure_ours
from benchmarks.prune_rivals import RIVALS
from benchmarks.prune_subjects import HF, NAMES, TIMM
from benchmarks.suite import run

OURS = "regraft"
WANTED = {"timm": 95, "hf": 40}
MIN_SHARE = 96.0
"""Percent of the captured models that have to prune right."""

MAX_LIMITED = 5
WITHIN = 0.02
F64 = 1e-12  # sums of fewer terms are ordered otherwise: some thousand terms at one f64 eps each
F32 = 1e-5
NOISE = 4.0
"""What f32 may add, as a multiple of what it adds to the dense model; as every check allows."""


def outcome(row: Mapping[str, Any]) -> str:
    """Returns what became of one of our models.

    `half`, `limited` (pins stop it above half, at the least that they allow), `uncaptured`, or
    `missed`.
    """
    if row["stage"] == "capture":
        return "uncaptured"
    if row["stage"] != "done" or not row["shape"] or not row["met"]:
        return "missed"
    if row["error"] > F64 or row["error_f32"] > max(F32, NOISE * row["rounding_f32"]):
        return "missed"
    return "limited" if "limited" in row else "half"


def verdict(row: Mapping[str, Any] | None) -> str:
    """Returns what became of a model of another tool.

    `half`: it runs, keeps its shapes, equals the masked model where that can be judged, and has
    half of the FLOPs within 2 %; `else`: all but the last; `wrong`; `fails`; `none`: not measured.
    """
    if row is None:
        return "none"
    if not row.get("runs"):
        return "fails"
    if not row["shape"] or row.get("error", 0.0) > F32:
        return "wrong"
    return "half" if abs(row["counted"] / TARGET - 1) <= WITHIN else "else"


def told(tool: str, row: Mapping[str, Any] | None) -> str:
    """Returns a few words about a model of another tool."""
    found = verdict(row)
    if row is None:
        return f"{tool}: not measured"
    if found == "fails":
        return f"{tool}: {row.get('reason', row['stage'])[:60]}"
    left = f"{row['counted']:.3f} of the FLOPs"
    if found == "wrong":
        reason = f"off by {row['error']:.0e}" if row["shape"] else "other shapes"
        return f"{tool}: wrong, {reason}, {left}"
    return f"{tool}: {left}"


def about(row: Mapping[str, Any]) -> str:
    """Returns a few words about one of our models."""
    if row["stage"] != "done":
        return f"{row['stage']}: {row.get('reason', '')[:300]}"
    text = (
        f"{row['groups']} groups; off the masked model by {row['error']:.0e} in f64, "
        f"{row['error_f32']:.0e} in f32; {row['seconds']:.1f} s"
    )
    return text + (f"; limited: {row['limited']}" if "limited" in row else "")


def coverage(settings: Settings) -> Iterable[Row]:
    """Every family, ours and the other tools'."""
    question = code()
    for row in rows(OURS, measure_ours, NAMES, question, WHOLE_LIMIT_S):
        print(line(row), file=sys.stderr, flush=True)
    lines = read()
    ours = {name: lines[OURS, name]["row"] for name in NAMES}
    for name, row in ours.items():
        others = "; ".join(
            told(tool.name, lines.get((tool.name, name), {}).get("row")) for tool in RIVALS
        )
        left = 100 * row["achieved"] if "achieved" in row else None
        yield shown(name, left, "% FLOPs left", f"{outcome(row)}: {about(row)}. {others}")
    yield from _bars(ours)
    for tool in RIVALS:
        yield from _compared(tool.name, ours, lines)


def _bars(ours: Mapping[str, Mapping[str, Any]]) -> Iterable[Row]:
    found = {name: outcome(row) for name, row in ours.items()}
    captured = [name for name in NAMES if found[name] != "uncaptured"]
    limited = [name for name in captured if found[name] == "limited"]
    right = [name for name in captured if found[name] in ("half", "limited")]
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
    yield at_most(
        "largest difference from the masked model in f64", max(r["error"] for r in measured), F64,
        "relative",
    )  # fmt: skip
    yield at_most(
        "largest difference from the masked model in f32", max(r["error_f32"] for r in measured),
        F32, "relative",
    )  # fmt: skip
    yield at_most(
        "FLOPs off half, at most", 100 * max(_off(row["achieved"]) for row in halves),
        100 * WITHIN, "%", "as `inspect` counts them",
    )  # fmt: skip
    yield at_most(
        "multiply-accumulates off half, at most, by PyTorch's counter",
        100 * max(_off(row["counted"]) for row in halves if row["counted"] is not None),
        100 * WITHIN, "%", "target=macs:0.5, on the generated modules",
    )  # fmt: skip
    yield at_most(
        "slowest: capture and prune", max(row["seconds"] for row in measured), LIMIT_S, "s"
    )


def _off(left: float) -> float:
    return abs(left / TARGET - 1)


def _compared(
    tool: str, ours: Mapping[str, Mapping[str, Any]], lines: Mapping[tuple[str, str], Any]
) -> Iterable[Row]:
    """Returns how many models another tool takes to half of their FLOPs, and that ours are more."""
    for library in ("timm", "hf"):
        names = [name for name in NAMES if name.startswith(f"{library}/")]
        theirs = [verdict(lines.get((tool, name), {}).get("row")) for name in names]
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
        yield held(f"{library}: more with regraft", count > theirs.count("half"), f"{count}")


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
    asked = [word for word in sys.argv[1:] if "/" in word and not word.startswith("-")]
    sys.exit(some(asked) if asked else run("prune_coverage", __doc__ or "", MEASUREMENTS))
