"""What a pass measured, as lines for a report to draw."""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Args:
        name: What it is of.
        points: (x, y), x ascending.
        chosen: The point that was taken, where one was.
    """

    name: str
    points: tuple[Point, ...]
    chosen: Point | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over the same axes.

    Args:
        title: Of the plot.
        x: What stands along the axis to the right.
        y: What stands along the axis upwards, from 0.
        lines: The curves.
        note: A sentence below.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    note: str = ""
