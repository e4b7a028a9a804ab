"""What is said about a row of the coverage of pruning: ours, and another tool's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.prune_once import TARGET

WITHIN = 0.02
F64 = 1e-12  # sums of fewer terms are ordered otherwise: some thousand terms at one f64 eps each
F32 = 1e-5
NOISE = 4.0
"""What f32 may add, as a multiple of what it adds to the dense model; as every check allows."""

RIGHT = ("half", "limited")
"""Outcomes of our models that are as they should be."""


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
