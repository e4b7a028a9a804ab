"""The cost table: measured times of the forms that an operator can take, and the choice by them.

A table is data: one entry per site, kind and sizes, with the nanoseconds of a whole small graph
around the site for every form. Kinds (element type, causal, …) must agree; of the sizes the nearest
measured ones count, on a logarithmic scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from regraft.ir.errors import InputError

MIN_GAIN = 0.03
"""A form that gains less than this does not replace the standard one."""

MAX_LOSS = 0.02
"""A form may lose this much at one of the possible sizes: the noise of a measured ratio."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One measurement.

    Args:
        site: What was chosen, such as `attention`.
        kind: Facts that must agree, as text.
        sizes: Sizes it was measured at.
        ns: Nanoseconds of the measured graph by form.
    """

    site: str
    kind: Mapping[str, str]
    sizes: Mapping[str, int]
    ns: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Features:
    """What the choice at one place depends on.

    Args:
        kind: Facts that must agree with an entry's.
        sizes: Possible values of each size; several where the size is symbolic.
    """

    kind: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The form to take, its time relative to the standard form, and the reason in one sentence."""

    form: str
    ratio: float
    reason: str


@dataclass(frozen=True, slots=True)
class CostTable:
    """Measured entries and the machine they were measured on.

    Args:
        target: The profile it is for.
        machine: CPU, versions and threads.
        entries: The measurements.
        source: Where it comes from, for reports.
    """

    target: str
    machine: Mapping[str, Any]
    entries: tuple[Entry, ...]
    source: str = "measured"
    _by_site: dict[tuple[str, tuple[tuple[str, str], ...]], list[Entry]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for entry in self.entries:
            self._by_site.setdefault((entry.site, _key(entry.kind)), []).append(entry)

    def choose(self, site: str, features: Features, forms: Sequence[str]) -> Choice:
        """Returns the best of the forms that are possible at one place.

        Args:
            site: What is chosen.
            features: What the choice depends on.
            forms: Possible forms, the standard one first.
        """
        standard = forms[0]
        entries = self._by_site.get((site, _key(features.kind)), [])
        known = [entry for entry in entries if standard in entry.ns]
        if not known or len(forms) == 1:
            return Choice(standard, 1.0, "not measured" if len(forms) > 1 else "no other form")
        near = _nearest(known, features.sizes)
        best, best_ratio, best_worst = standard, 1.0, 1.0
        missed = ""
        for form in forms[1:]:
            ratios = [e.ns[form] / e.ns[standard] for e in near if form in e.ns]
            if len(ratios) < len(near):
                continue
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            if max(ratios) > 1 + MAX_LOSS:
                if min(ratios) <= 1 - MIN_GAIN:
                    missed = f"; {form} takes {min(ratios):.2f}x to {max(ratios):.2f}x by size"
                continue
            if mean < best_ratio and mean <= 1 - MIN_GAIN:
                best, best_ratio, best_worst = form, mean, max(ratios)
        where = _describe(near)
        if best == standard:
            return Choice(standard, 1.0, f"no form gains {MIN_GAIN:.0%} {where}{missed}")
        return Choice(
            best,
            best_ratio,
            f"{best_ratio:.2f}x of {standard}, {best_worst:.2f}x at worst, {where}",
        )

    def to_json(self) -> str:
        """Returns the text of a table file."""
        document = {
            "format": _FORMAT,
            "target": self.target,
            "machine": dict(self.machine),
            "entries": [
                {
                    "site": e.site, "kind": dict(e.kind), "sizes": dict(e.sizes),
                    "ns": {form: round(ns) for form, ns in e.ns.items()},
                }
                for e in self.entries
            ],
        }  # fmt: skip
        head = json.dumps({**document, "entries": []}, indent=1)[: -len("[]\n}")]
        lines = ",\n  ".join(json.dumps(entry) for entry in document["entries"])  # type: ignore[attr-defined]
        return f"{head}[\n  {lines}\n ]\n}}\n"


def _key(kind: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(kind.items()))


def _nearest(entries: Sequence[Entry], sizes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """Returns the nearest entry for every combination of possible sizes, each once."""
    found: dict[int, Entry] = {}
    for wanted in _combinations(sizes):
        entry = min(entries, key=lambda e: _distance(e.sizes, wanted))
        found[id(entry)] = entry
    return list(found.values())


def _combinations(sizes: Mapping[str, tuple[int, ...]]) -> Iterable[dict[str, int]]:
    combinations: list[dict[str, int]] = [{}]
    for name, values in sizes.items():
        combinations = [{**c, name: value} for c in combinations for value in values]
    return combinations


def _distance(measured: Mapping[str, int], wanted: Mapping[str, int]) -> float:
    return sum(
        abs(math.log2(max(size, 1) / max(wanted[name], 1)))
        for name, size in measured.items()
        if name in wanted
    )


def _describe(entries: Sequence[Entry]) -> str:
    names = entries[0].sizes
    parts = []
    for name in names:
        values = sorted({entry.sizes[name] for entry in entries})
        span = str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"
        parts.append(f"{name}={span}")
    return f"measured at {', '.join(parts)}"


def parse_table(text: str, source: str) -> CostTable:
    """Returns the table in a text.

    Raises:
        InputError: When it is no cost table of this format.
    """
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise InputError(
                f"cost table `{source}` has format {document['format']}, expected {_FORMAT}",
                hint="measure it again with `regraft tune`",
            )
        entries = tuple(
            Entry(e["site"], e["kind"], e["sizes"], e["ns"]) for e in document["entries"]
        )
        return CostTable(document["target"], document["machine"], entries, source)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"`{source}` is no cost table: {error}", hint="write one with `regraft tune -o FILE`"
        ) from error


def shipped_table(target: str) -> CostTable | None:
    """Returns the table that comes with the package, None for a target without one."""
    file = resources.files("regraft.backends.onnx") / "costs" / f"{target.replace('-', '_')}.json"
    if not file.is_file():
        return None
    return parse_table(file.read_text(encoding="utf-8"), f"shipped {target}")


def read_table(path: Path) -> CostTable:
    """Returns the table in a file.

    Raises:
        InputError: When it cannot be read or is no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cost table `{path}` cannot be read: {error}") from error
    return parse_table(text, str(path))
