"""Loss curves, measured once: cached by content, resumable.

A cache is a file of lines, one measurement each, appended as soon as it is made: what was
interrupted goes on from there, and what did not change is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regraft.ir.errors import InputError
from regraft.passes.solver.problem import Unit

Array = np.ndarray[Any, Any]


class LossSource(Protocol):
    """What measures."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a measurement would: of the model, the samples, the loss."""

    def loss(self, levels: Mapping[str, float]) -> float:
        """Returns the loss when units keep the given levels, by name, and all others everything."""


class CurveStore:
    """Measurements by content.

    Args:
        path: The file; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, float] = {}
        self.num_measured = 0
        if path is not None and path.exists():
            self.known = dict(_read(path))

    def get(self, source: LossSource, levels: Mapping[str, float]) -> float:
        """Returns a loss, measured if it is not known."""
        key = _key(source.fingerprint, levels)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = float(source.loss(levels))
            self.num_measured += 1
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "loss": found}) + "\n")
        return found


def _read(path: Path) -> list[tuple[str, float]]:
    """Returns what a file holds; a last line that was cut off while it was written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found: list[tuple[str, float]] = []
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            item = json.loads(line)
            found.append((str(item["key"]), float(item["loss"])))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) - 1:
                continue
            raise InputError(
                f"`{path}`, line {number + 1}: no measurement: {error}",
                hint="delete the file: it is measured again",
            ) from error
    if lines[-1]:  # the next line must begin on its own
        path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
    return found


def _key(fingerprint: str, levels: Mapping[str, float]) -> str:
    text = json.dumps([fingerprint, sorted((name, repr(v)) for name, v in levels.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def measure_curves(
    source: LossSource,
    levels: Mapping[str, Sequence[float]],
    store: CurveStore | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Unit, ...]:
    """Returns units with their loss at every level, others whole.

    Level 1 loses nothing and is not measured. Losses are made to fall with the level: where noise
    says that keeping more loses more, both lose the lesser of them.

    Args:
        source: Measures.
        levels: By name of the unit, ascending.
        store: Measurements known, and where new ones go.
        progress: Told how many levels are done, of how many.
    """
    store = CurveStore() if store is None else store
    total = sum(len(each) for each in levels.values())
    units, done = [], 0
    for name, each in levels.items():
        losses = []
        for level in each:
            losses.append(0.0 if level == 1 else store.get(source, {name: float(level)}))
            done += 1
            progress(done, total)
        falling = np.minimum.accumulate(np.array(losses))
        units.append(Unit(name, np.array(each, np.float64), falling))
    return tuple(units)
