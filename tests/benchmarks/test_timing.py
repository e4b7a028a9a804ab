"""Intervals, peaks and limits of the measuring tools themselves."""

import math
import sys

import pytest

from benchmarks import timing
from benchmarks.measure import Row, at_least, at_most, held, shown


def coverage(rank, count):
    """Probability that the order statistics `rank` and `count + 1 - rank` enclose the median."""
    return 1 - 2 * sum(math.comb(count, k) for k in range(rank)) / 2**count


@pytest.mark.parametrize("count", [6, 7, 20, 50, 51])
def test_ratio_interval_is_the_narrowest_of_95_percent(count):
    found = timing.ratio([float(i + 1) for i in range(count)], [1.0] * count)
    rank = int(found.low)
    assert found.high == count + 1 - rank
    assert coverage(rank, count) >= 0.95 > coverage(rank + 1, count)


def test_ratio_of_few_rounds_gives_the_whole_range():
    found = timing.ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert (found.low, found.median, found.high, found.rounds) == (1.0, 2.0, 4.0, 3)


def test_interleaved_calls_everything_once_more_than_the_rounds():
    order = []
    seconds = timing.interleaved([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(column) for column in seconds] == [3, 3]


def test_run_sees_the_memory_of_the_child():
    code = "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); print('done')"
    done = timing.run([sys.executable, "-c", code], timeout_s=30)
    assert done.stdout == "done\n"
    assert done.peak_rss_bytes > 200e6


def test_run_kills_at_the_limit():
    done = timing.run([sys.executable, "-c", "import time; time.sleep(30)"], timeout_s=0.3)
    assert done.timed_out
    assert done.wall_s < 10
    with pytest.raises(timing.PeerFailedError, match="sleeper: ran past"):
        done.require_success("sleeper")


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (at_most("a", 1.0, 1.0, "s"), True),
        (at_most("a", 1.1, 1.0, "s"), False),
        (at_least("a", 1.1, 1.0, "x"), True),
        (at_most("a", None, 1.0, "s"), False),
        (shown("a", 5.0, "s"), None),
        (held("a", False), False),
        (Row("a", 1.1, "x", 1.0, judged=0.9), True),
    ],
)
def test_row_is_met_when_the_judged_number_is_on_the_right_side(row, met):
    assert row.met is met
