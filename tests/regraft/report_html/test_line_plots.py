"""Plots of lines: places, scales, and the page that shows them."""

import itertools

import pytest

from regraft.report_html import lines_page
from regraft.report_html.line_plots import HEIGHT, line_plots

PLOT = {
    "title": "Sensitivity", "x": "kept", "y": "error", "note": "alone",
    "lines": [
        {"name": "first", "points": [[0.5, 0.4], [1.0, 0.0]], "chosen": [0.75, 0.2]},
        {"name": "second <b>", "points": [[0.5, 0.2], [1.0, 0.0]], "chosen": None},
    ],
}  # fmt: skip


def test_points_stand_where_the_axes_say() -> None:
    (drawing,) = line_plots([PLOT])
    first, second = drawing.lines
    assert [tick.text for tick in drawing.x_ticks] == ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    at_half, at_one = drawing.x_ticks[0].at, drawing.x_ticks[-1].at
    assert (at_half, at_one) == (drawing.left, drawing.right)
    assert first.points == ((at_half, drawing.y_ticks[-1].at), (at_one, drawing.bottom))
    assert first.mark is not None
    assert first.mark[0] == pytest.approx((at_half + at_one) / 2)
    assert second.mark is None
    # half of the height of the first
    low, high = drawing.bottom, drawing.y_ticks[-1].at
    assert second.points[0][1] == pytest.approx((low + high) / 2, abs=0.1)


def test_lines_of_very_different_height_stand_on_powers_of_ten() -> None:
    lines = [
        {"name": str(k), "points": [[0.5, 10.0**-k], [1.0, 0.0]], "chosen": [1.0, 0.0]}
        for k in range(5)
    ]
    (drawing,) = line_plots([{**PLOT, "lines": lines}])
    heights = [line.points[0][1] for line in drawing.lines]
    steps = [b - a for a, b in itertools.pairwise(heights)]
    assert max(steps) == pytest.approx(min(steps), abs=0.2)
    # zero has no power of ten: no point, and a mark at the foot
    assert all(len(line.points) == 1 for line in drawing.lines)
    assert all(line.mark is not None and line.mark[1] == drawing.bottom for line in drawing.lines)
    assert [tick.text for tick in drawing.y_ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]


def test_lines_beyond_the_room_for_names_are_drawn_and_listed() -> None:
    lines = [
        {"name": f"layer {k}", "points": [[0, 1 + k], [1, 0]], "chosen": None} for k in range(9)
    ]
    (drawing,) = line_plots([{**PLOT, "lines": lines}])
    assert [bool(line.short) for line in drawing.lines] == [True] * 6 + [False] * 3
    assert all(line.at[1] < HEIGHT for line in drawing.lines)
    page = lines_page("many", "lines", [{**PLOT, "lines": lines}])
    assert all(f"<code>layer {k}</code>" in page for k in range(9))
    assert "and 3 below them" in page


def test_a_page_escapes_names_and_leaves_out_plots_without_points() -> None:
    empty = {**PLOT, "title": "Nothing", "lines": [{"name": "a", "points": [], "chosen": None}]}
    page = lines_page("title", "about", [PLOT, empty])
    assert "second &lt;b&gt;" in page
    assert "Nothing" not in page
    assert page.count("<polyline") == 2
