"""Geometry of plots of lines: what passes measured, and curves of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.report_html.plots import WIDTH, Tick

HEIGHT = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 310, 16, 44
_NAMED = 6
"""Lines with a colour and a name beside the plot; the table below names all."""
_ROW = 22
_MAX_NAME = 34
_MIN_TICKS = 4
_SKEWED = 10.0
"""Largest value over that of the median line, above which the axis counts in powers of ten."""

Place = tuple[float, float]
_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """One curve.

    Args:
        name: Of it, in full.
        short: What fits beside the plot; empty where no room is left.
        at: Place of the name.
        points: Places.
        mark: Place of the point that was chosen, None where none was.
        shade: Number of its colour; lines without a name have the last.
    """

    name: str
    short: str
    at: Place
    points: tuple[Place, ...]
    mark: Place | None
    shade: int

    @property
    def path(self) -> str:
        """`x,y x,y …`, as SVG has it."""
        return " ".join(f"{x},{y}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class LinePlot:
    """A drawing; its words and numbers stay in `plot`."""

    plot: Mapping[str, Any]
    width: float
    height: float
    left: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]


def line_plots(plots: Sequence[Mapping[str, Any]]) -> list[LinePlot]:
    """Returns drawings of plots as `report.json` holds them, but those without a point."""
    return [_drawn(plot) for plot in plots if any(line["points"] for line in plot["lines"])]


def _drawn(plot: Mapping[str, Any]) -> LinePlot:
    lines = [line for line in plot["lines"] if line["points"]]
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    x_at, x_ticks = _linear([x for line in lines for x, _ in _all(line)], _LEFT, right)
    heights = [[y for _, y in _all(line)] for line in lines]
    tallest = sorted(max(each) for each in heights)
    is_skewed = tallest[-1] > _SKEWED * tallest[len(tallest) // 2] > 0
    scale = _powers if is_skewed else _linear
    y_at, y_ticks = scale([0.0, *(y for each in heights for y in each)], bottom, _TOP)
    drawn = []
    for number, line in enumerate(lines):
        # zero has no place among powers of ten
        points = [(x, y) for x, y in line["points"] if y > 0 or not is_skewed]
        chosen = line["chosen"]
        mark = None if chosen is None else (x_at(chosen[0]), y_at(chosen[1]))
        is_named = number < _NAMED
        drawn.append(
            DrawnLine(
                line["name"], _short(line["name"]) if is_named else "",
                (right + 34, _TOP + 12 + _ROW * number),
                tuple((x_at(x), y_at(y)) for x, y in points), mark, min(number, _NAMED),
            )
        )  # fmt: skip
    return LinePlot(
        plot, WIDTH, HEIGHT, _LEFT, right, bottom, x_ticks, y_ticks, tuple(drawn)
    )  # fmt: skip


def _all(line: Mapping[str, Any]) -> list[Place]:
    return [*line["points"], *([line["chosen"]] if line["chosen"] is not None else [])]


def _linear(values: Sequence[float], start: float, end: float) -> tuple[_Scale, tuple[Tick, ...]]:
    """Returns where values stand between two places, and ticks at round values around them."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span))
    step /= next(by for by in (1, 2, 5, 10) if span * by / step >= _MIN_TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)

    def at(value: float) -> float:
        return round(start + (end - start) * (value / step - first) / (last - first), 1)

    return at, tuple(Tick(at(k * step), f"{k * step:.4g}") for k in range(first, last + 1))


def _powers(values: Sequence[float], start: float, end: float) -> tuple[_Scale, tuple[Tick, ...]]:
    """Returns the same in powers of ten; what is zero stands at the start."""
    known = [value for value in values if value > 0]
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    last = max(last, first + 1)

    def at(value: float) -> float:
        power = first if value <= 0 else math.log10(value)
        return round(start + (end - start) * (power - first) / (last - first), 1)

    return at, tuple(Tick(at(10.0**k), f"{10.0**k:.4g}") for k in range(first, last + 1))


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2]}…{name[-_MAX_NAME // 2 :]}"
