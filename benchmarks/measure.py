"""Rows, bars and measurements: what every `benchmarks/core_*.py` file is made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
RESULTS = ROOT / "benchmarks" / "results"

MB = 1_000_000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a measurement, and the bar it has to meet.

    Attributes:
        name: what was measured, with its conditions.
        value: the number; None where nothing could be measured.
        unit: unit of the value and of the bar.
        bar: the limit; None for a number that is only shown.
        sense: whether the value may be at most or must be at least the bar.
        note: spread, counts, reasons: shown beside the number.
        judged: the value the bar is held against where that is not `value`, such as the favourable
            end of an interval.
    """

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    note: str = ""
    judged: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.bar is None:
            return None
        number = self.value if self.judged is None else self.judged
        if number is None:
            return False
        return number <= self.bar if self.sense == "at most" else number >= self.bar


def at_most(name: str, value: float | None, bar: float, unit: str, note: str = "") -> Row:
    """Returns a row that is met by a value of `bar` or less."""
    return Row(name, value, unit, bar, "at most", note)


def at_least(name: str, value: float | None, bar: float, unit: str, note: str = "") -> Row:
    """Returns a row that is met by a value of `bar` or more."""
    return Row(name, value, unit, bar, "at least", note)


def shown(name: str, value: float | None, unit: str, note: str = "") -> Row:
    """Returns a row without a bar."""
    return Row(name, value, unit, note=note)


def held(name: str, holds: bool, note: str = "") -> Row:
    """Returns a row for a statement that has to hold: the number of violations is at most zero."""
    return Row(name, 0.0 if holds else 1.0, "violations", 0.0, "at most", note)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line of `benchmarks.core` hands to every measurement.

    Attributes:
        python: interpreter that has regraft.
        peers_python: interpreter that has the peers, made by `make peers`.
        timeout_s: limit of one subprocess.
        rounds: interleaved rounds of a comparison whose round exceeds a second.
        work: folder for generated models and outputs.
        again: whether what is kept of other commits is measured again.
        kept: whether nothing is measured of coverages: what is kept is shown.
    """

    python: str
    peers_python: str
    timeout_s: float
    rounds: int
    work: Path = field(default=CACHE)
    again: bool = False
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """A named function from settings to rows; `about` is one line for `--list`."""

    name: str
    about: str
    run: Callable[[Settings], Iterable[Row]]


def by_name(measurements: Iterable[Measurement]) -> Mapping[str, Measurement]:
    """Returns the measurements by name.

    Raises:
        ValueError: two have the same name.
    """
    table: dict[str, Measurement] = {}
    for measurement in measurements:
        if measurement.name in table:
            raise ValueError(f"two measurements are called `{measurement.name}`")
        table[measurement.name] = measurement
    return table
