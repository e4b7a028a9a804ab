"""Times calls in turns, on the GPU alone; what fails is noted beside what does not."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.row import Call, Maker

SETS = 3
"""Sets of inputs that calls take in turn, so that no cache holds those of the call before."""

TURNS = 5

_AHEAD_CYCLES = 1 << 20
"""That the GPU waits before a call, some 0.6 ms: its launches are queued by then."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of calls on the GPU: the median, and the ends of the middle three fifths.

    Args:
        median: On the GPU.
        low: On the GPU.
        high: On the GPU.
        host: Until a call returns, the median.
    """

    median: float
    low: float
    high: float
    host: float = 0.0


@dataclass(slots=True)
class Measured:
    """What calls took, and what became of the others.

    Args:
        times: By name.
        failed: By name, the first line of what was raised.
        without_room: Names of those that the GPU's memory does not hold.
    """

    times: dict[str, Times] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    without_room: list[str] = field(default_factory=list)


def seconds(makers: Mapping[str, Maker], device: str, rounds: int) -> Measured:
    """Returns the seconds of a call of each, measured in turns."""
    found = Measured()
    calls: dict[str, list[Call]] = {}
    taken: dict[str, list[tuple[float, float]]] = {}
    for name, make in makers.items():
        try:
            made = [make() for _ in range(SETS if rounds > 1 else 1)]
            if device == "cuda":
                for call in made:
                    call()  # compiles
                torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            found.without_room.append(name)
            gc.collect()
            torch.cuda.empty_cache()
        except Exception as error:
            found.failed[name] = told(error)
        else:
            calls[name], taken[name] = made, []
    for turn in range(rounds):
        for name, sets in list(calls.items()):
            try:
                taken[name].append(_timed(sets[turn % len(sets)], device))
            except Exception as error:
                found.failed[name] = told(error)
                del calls[name]
    found.times = {name: _middle(taken[name]) for name in calls}
    return found


def told(error: Exception) -> str:
    """Returns the kind of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def _middle(taken: list[tuple[float, float]]) -> Times:
    times, hosts = zip(*taken, strict=True)
    median, host = statistics.median(times), statistics.median(hosts)
    if len(times) < 5:
        return Times(median, min(times), max(times), host)
    fifths = statistics.quantiles(times, n=5)
    return Times(median, fifths[0], fifths[3], host)


def _timed(call: Call, device: str) -> tuple[float, float]:
    """Returns the seconds of a call on the GPU, and those until it returns."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        return taken, taken
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # otherwise the GPU would wait for launches between the two events
    torch.cuda._sleep(_AHEAD_CYCLES)
    start_event.record()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1e3, host
