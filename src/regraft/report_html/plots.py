"""Geometry of the plots on a page: latency by model, and size against latency.

Places are in the units of the drawing, which is as wide as the page's text; the templates draw them
as SVG inside the page, in the page's colours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

WIDTH = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 16, 44
_ROW_HEIGHT = 44
_SCATTER_HEIGHT = 320
_LABEL_HEIGHT = 16
_CHARACTER = 8  # of a name, at the size in which pages are set
_DOT, _GAP = 8, 12
_MAX_NAME = 40
_MIN_TICKS = 4


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its place and what is written there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """Latency of one model: places of the 10th percentile, median and 90th, and of its row."""

    name: str
    text: str
    low: float
    middle: float
    high: float
    y: float


@dataclass(frozen=True, slots=True)
class Dot:
    """One model in the plane of latency and size.

    Args:
        name: What is written beside it.
        text: What pointing at it says.
        x: Place.
        y: Place.
        label_x: Place of the name.
        label_y: Place of the name; names never lie over each other.
        anchor: `start` or `end`, the side of the name that `label_x` is.
        is_first: Whether it is the model that ratios are to.
    """

    name: str
    text: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    is_first: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing."""

    width: float
    height: float
    left: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...] = ()
    dots: tuple[Dot, ...] = ()


def latency_plot(runs: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Returns the latency of each run (`median_ms`, `p10_ms`, `p90_ms`), None without runs."""
    if not runs:
        return None
    top, ticks = _axis(max(run["p90_ms"] for run in runs), _LEFT, WIDTH - _RIGHT, "ms")

    names = _names([run["path"] for run in runs])

    def at(milliseconds: float) -> float:
        return round(_LEFT + (WIDTH - _RIGHT - _LEFT) * milliseconds / top, 1)

    bars = tuple(
        Bar(
            name, f"{run['median_ms']:.3g} ms, ratio {run['ratio']:.3f}",
            at(run["p10_ms"]), at(run["median_ms"]), at(run["p90_ms"]),
            _TOP + _ROW_HEIGHT * (number + 0.7),
        )
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    )  # fmt: skip
    bottom = _TOP + _ROW_HEIGHT * len(runs) + 8
    return Plot(WIDTH, bottom + _BOTTOM, _LEFT, bottom, ticks, (), bars)


def tradeoff_plot(runs: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Returns size (`bytes`) against latency; None with less than two runs of known size."""
    known = [run for run in runs if run.get("bytes")]
    if len(known) < 2:
        return None
    bottom = _SCATTER_HEIGHT - _BOTTOM
    unit, factor = _unit(max(run["bytes"] for run in known))
    right, x_ticks = _axis(max(run["median_ms"] for run in known), _LEFT, WIDTH - _RIGHT, "ms")
    top, y_ticks = _axis(max(run["bytes"] for run in known) / factor, bottom, _TOP, unit)
    places = [
        (
            round(_LEFT + (WIDTH - _RIGHT - _LEFT) * run["median_ms"] / right, 1),
            round(bottom + (_TOP - bottom) * run["bytes"] / factor / top, 1),
        )
        for run in known
    ]
    names = _names([run["path"] for run in known])
    labels = _labels(places, names, bottom)
    dots = tuple(
        Dot(name, _about(run, unit, factor, is_first=number == 0), x, y, *label, number == 0)
        for number, (run, name, (x, y), label) in enumerate(
            zip(known, names, places, labels, strict=True)
        )
    )
    return Plot(WIDTH, _SCATTER_HEIGHT, _LEFT, bottom, x_ticks, y_ticks, (), dots)


def _about(run: Mapping[str, Any], unit: str, factor: float, *, is_first: bool) -> str:
    text = f"{run['path']}: {run['median_ms']:.3g} ms, {run['bytes'] / factor:.3g} {unit}"
    if run.get("max_rel") is None or is_first:
        return text
    return f"{text}, outputs differ by {float(run['max_rel']):.2g} of the largest"


def _labels(
    places: Sequence[tuple[float, float]], names: Sequence[str], bottom: float
) -> list[tuple[float, float, str]]:
    """Returns (x, y, anchor) of each name, beside its dot and over no other name or dot."""
    taken = [(x - _DOT, x + _DOT, y) for x, y in places]
    labels = []
    for (x, y), name in zip(places, names, strict=True):
        wide = _CHARACTER * len(name)
        rows = range(math.ceil(_SCATTER_HEIGHT / _LABEL_HEIGHT))
        for away, side in itertools.product(rows, (1, -1)):
            # to the right and to the left of the dot, then further down, or up from the axis
            low = x + _GAP if side > 0 else x - _GAP - wide
            line = y + away * _LABEL_HEIGHT * (1 if y < bottom / 2 else -1)
            is_free = all(
                abs(line - y_) >= _LABEL_HEIGHT - 1 or low > high_ or low + wide < low_
                for low_, high_, y_ in taken
                if (y_, (low_ + high_) / 2) != (y, x)
            )
            if is_free and low >= _LEFT and low + wide <= WIDTH:
                break
        taken.append((low, low + wide, line))
        labels.append((x + side * _GAP, line + 4, "start" if side > 0 else "end"))
    return labels


def _axis(largest: float, start: float, end: float, unit: str) -> tuple[float, tuple[Tick, ...]]:
    """Returns the value at the end of an axis from 0, and ticks at round values."""
    largest = largest if largest > 0 else 1.0
    step = 10.0 ** math.floor(math.log10(largest))
    step /= next(by for by in (1, 2, 5, 10) if largest * by / step >= _MIN_TICKS)
    count = math.ceil(largest / step - 1e-9)
    ticks = tuple(
        Tick(round(start + (end - start) * number / count, 1), f"{number * step:.4g}")
        for number in range(count + 1)
    )
    return count * step, (*ticks[:-1], Tick(ticks[-1].at, f"{ticks[-1].text} {unit}"))


def _unit(largest: float) -> tuple[str, float]:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= factor:
            return unit, factor
    return "B", 1.0


def _names(paths: Sequence[str]) -> list[str]:
    """Returns what tells models apart: the last part of their paths, else the end of the whole."""
    names = [PurePath(path).name for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    return [name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}" for name in names]
