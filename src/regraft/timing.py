"""The timing rule: interleaved calls, ratios per round, and a 95 % interval of their median.

One thread unless said; the favourable end of the interval is what a bar is held against.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_ROUNDS = 50
"""Rounds of a comparison whose round takes less than a second."""

MIN_TURN_S = 1e-3
"""A call shorter than this is repeated within its turn: the clock and the caller cost less then."""

_MAX_REPEATS = 100


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of per-round ratios with a 95 % interval of the median (order statistics)."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.rounds} rounds"


def median(values: Sequence[float]) -> float:
    """Returns the median; the mean of the two middle values where their number is even."""
    return quantile(values, 0.5)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Returns the value below which `fraction` of the values lie, interpolated linearly."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Returns the median of `numerators[i] / denominators[i]`.

    The interval holds the median with a probability of at least 95 % whatever the distribution;
    below six rounds no interval does, and the whole range is given.
    """
    values = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    count = len(values)
    rank, tail = 0, 0.0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if tail > 0.025:
            break
        rank += 1
    low = max(rank - 1, 0)
    return Ratio(median(values), values[low], values[count - 1 - low], count)


def interleaved(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    *,
    min_turn_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Returns, for every call, its seconds in each round; the order rotates from round to round.

    Args:
        calls: What is measured; each runs once before the first round.
        rounds: Number of rounds.
        min_turn_s: A turn repeats its call until about this much time has passed; every call of
            the round is repeated as often as the others.
        clock: Seconds; `time.thread_time` leaves out what other processes take, where the calls
            run on the thread that calls.
    """
    seconds: list[list[float]] = [[0.0] * rounds for _ in calls]
    for call in calls:
        call()  # caches warm, allocators grown
    repeats = _repeats(calls, min_turn_s)
    for idx in range(rounds):
        for turn in range(len(calls)):
            which = (idx + turn) % len(calls)
            call = calls[which]
            start = clock()
            for _ in range(repeats):
                call()
            seconds[which][idx] = (clock() - start) / repeats
    return seconds


def _repeats(calls: Sequence[Callable[[], object]], min_turn_s: float) -> int:
    if min_turn_s <= 0:
        return 1
    shortest = math.inf
    for call in calls:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return max(1, min(_MAX_REPEATS, math.ceil(min_turn_s / max(shortest, 1e-9))))
