"""Times every row on a GPU; `--tiny` runs each once on a CPU, in the interpreter where it is on.

A run takes at most `--minutes`: where time runs short, rows go without the peers that compile, and
say so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu.peers import absent
from benchmarks.gpu.row import ON_A_GPU, Call, Maker, Row
from benchmarks.gpu.rows import FULL, TINY, rows

SETS = 3
"""Sets of inputs that calls take in turn, so that no cache holds those of the call before."""

TURNS = 5
_SHARE_OF_ROWS = 0.6
"""Of the time, for rows of kernels; the rest is for whole models."""
_COMPILING_S = 45.0
"""That tuning a whole model may take: with less left, it is not begun."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of calls: the median, and the ends of the middle three fifths."""

    median: float
    low: float
    high: float


def seconds(makers: Mapping[str, Maker], device: str, rounds: int) -> dict[str, Times]:
    """Returns the seconds of a call of each, measured in turns; those without room are left out."""
    calls: dict[str, list[Call]] = {}
    for name, make in makers.items():
        try:
            made = [make() for _ in range(SETS if rounds > 1 else 1)]
            for call in made:
                call()  # compiles
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        calls[name] = made
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, sets in calls.items():
            found[name].append(_timed(sets[turn % len(sets)], device))
    return {name: _middle(times) for name, times in found.items()}


def _middle(times: list[float]) -> Times:
    if len(times) < 5:
        return Times(statistics.median(times), min(times), max(times))
    fifths = statistics.quantiles(times, n=5)
    return Times(statistics.median(times), fifths[0], fifths[3])


def _timed(call: Call, device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1e3


def ceilings(device: str, rounds: int, size: int) -> tuple[float, float]:
    """Returns bytes per second of a copy, and operations per second of a large matmul."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def copy() -> Call:
        a, b = torch.empty(2, size * size * 4, device=device, dtype=dtype)
        return lambda: b.copy_(a)

    def product() -> Call:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        return lambda: a @ b

    found = seconds({"copy": copy, "product": product}, device, rounds)
    copied = 2 * size * size * 4 * dtype.itemsize / found["copy"].median
    return copied, 2 * size**3 / found["product"].median


def line(
    row: Row, found: Mapping[str, Times], ceiling: tuple[float, float], left_out: list[str]
) -> str:
    """Returns a row of the table: time, rate, share of the ceiling, ratios to peers."""
    label = f"{row.number or 'model':>5} {row.name:48}"
    own = found.get("ours")
    missing = [f"no time for {', '.join(left_out)}"] if left_out else []
    asked = [f"asked: {row.goal}"] if row.goal else []
    amount, most = (row.flops, ceiling[1]) if row.flops else (row.num_bytes, ceiling[0])
    unit = "TFLOP/s" if row.flops else "TB/s"
    if own is None:
        why = "no kernel of ours" if row.ours is None else "no room on this GPU"
        times = [
            f"{name} {t.median * 1e3:.3f} ms {amount / t.median / 1e12:.3f} {unit}"
            for name, t in found.items()
        ]
        return f"{label} {why:36} {'; '.join([*times, *missing, *asked])}"
    rate = amount / own.median
    spread = 50 * (own.high - own.low) / own.median
    ratios = ", ".join(
        f"{name} x{t.median / own.median:.2f}" for name, t in found.items() if name != "ours"
    )
    said = "; ".join(filter(None, [ratios, *missing, *asked]))
    return (
        f"{label} {own.median * 1e3:9.3f} ms ±{spread:3.0f} % {rate / 1e12:8.3f} {unit:8} "
        f"{100 * rate / most:5.1f} %  {said}"
    )


def table(device: str, *, is_tiny: bool, only: str, deadline_s: float) -> Iterator[str]:
    """Yields the lines of the table.

    Args:
        device: `cuda` or `cpu`.
        is_tiny: Whether sizes are those for the interpreter.
        only: Part of the names of rows.
        deadline_s: When the run has to end, as `time.monotonic` tells it.
    """
    rounds = 1 if is_tiny else SETS * TURNS
    start = time.monotonic()
    ceiling = ceilings(device, rounds, 64 if is_tiny else 8192)
    where = "CPU, tiny sizes: no figure of speed" if is_tiny else torch.cuda.get_device_name()
    yield f"{where}: copy {ceiling[0] / 1e12:.3f} TB/s, product {ceiling[1] / 1e12:.3f} TFLOP/s"
    yield f"not installed, so not compared with: {', '.join(absent()) or 'none'}"
    for row in rows(device, TINY if is_tiny else FULL):
        if only not in row.name:
            continue
        now = time.monotonic()
        share = _SHARE_OF_ROWS if row.number else 1.0
        is_late = now + (0 if row.number else _COMPILING_S) > start + share * (deadline_s - start)
        skipped = ON_A_GPU if is_tiny or is_late else ()
        wanted = {name: make for name, make in row.peers.items() if name not in skipped}
        if row.ours is not None:
            wanted = {"ours": row.ours, **wanted}
        left_out = [] if is_tiny else [name for name in row.peers if name in skipped]
        yield line(row, seconds(wanted, device, rounds), ceiling, left_out)


def main(arguments: list[str]) -> int:
    """Prints the table; returns 1 where there is no GPU and none was given up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="each row once, on a CPU")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--minutes", type=float, default=8.0, help="that the run may take")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no GPU is here; --tiny runs every row once on a CPU", file=sys.stderr)
        return 1
    device = "cpu" if options.tiny else "cuda"
    deadline_s = time.monotonic() + 60 * options.minutes
    for text in table(device, is_tiny=options.tiny, only=options.only, deadline_s=deadline_s):
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
