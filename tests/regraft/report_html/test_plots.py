"""Places of bars, dots and ticks in the plots of a page."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from regraft.report_html.plots import WIDTH, latency_plot, tradeoff_plot


def run(path: str, ms: float, size: int | None, **more: Any) -> dict[str, Any]:
    return {
        "path": path, "median_ms": ms, "p10_ms": 0.9 * ms, "p90_ms": 1.2 * ms, "ratio": 1.0,
        "bytes": size, **more,
    }  # fmt: skip


def test_bars_lie_on_the_scale_of_the_ticks() -> None:
    plot = latency_plot([run("a", 10.0, 1), run("b", 5.0, 1)])
    assert plot is not None
    assert [tick.text for tick in plot.x_ticks] == ["0", "2", "4", "6", "8", "10", "12 ms"]
    first, second = plot.bars
    zero = plot.x_ticks[0].at
    assert first.middle == pytest.approx(plot.x_ticks[5].at, abs=0.2)
    assert second.middle - zero == pytest.approx((first.middle - zero) / 2, abs=0.2)
    assert first.low < first.middle < first.high
    assert first.y < second.y < plot.bottom


@pytest.mark.parametrize("largest", [0.0, 0.013, 1.0, 9.99, 10.0, 12_345.0])
def test_ticks_reach_past_the_largest_value(largest: float) -> None:
    plot = latency_plot([run("a", largest, 1)])
    assert plot is not None
    assert 4 <= len(plot.x_ticks) <= 12
    assert plot.bars[0].high <= plot.x_ticks[-1].at + 0.1
    assert all(a.at < b.at for a, b in itertools.pairwise(plot.x_ticks))


def test_smaller_and_faster_is_down_and_to_the_left() -> None:
    plot = tradeoff_plot([run("a", 10.0, 40_000_000), run("b", 5.0, 10_000_000, max_rel=1e-3)])
    assert plot is not None
    first, second = plot.dots
    assert second.x < first.x
    assert second.y > first.y
    assert plot.y_ticks[-1].text == "40 MB"
    assert second.text == "b: 5 ms, 10 MB, outputs differ by 0.001 of the largest"


def test_names_of_equal_models_do_not_lie_over_each_other() -> None:
    plot = tradeoff_plot([run(f"model {i}", 5.0, 1000) for i in range(5)])
    assert plot is not None
    places = sorted(dot.label_y for dot in plot.dots)
    assert all(b - a >= 14 for a, b in itertools.pairwise(places))
    assert all(0 < dot.label_x < WIDTH for dot in plot.dots)


def test_nothing_to_compare_is_no_plot() -> None:
    assert latency_plot([]) is None
    assert tradeoff_plot([run("a", 5.0, 1000), run("b", 4.0, None)]) is None
