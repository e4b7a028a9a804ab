"""Times every row on a GPU; `--tiny` runs each once on a CPU, in the interpreter where it is on."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.row import Call, Row
from benchmarks.gpu.rows import FULL, TINY, rows

SETS = 3
"""Sets of inputs that calls take in turn, so that no cache holds those of the call before."""

TURNS = 5


def seconds(makers: dict[str, Callable[[], Call]], device: str, rounds: int) -> dict[str, float]:
    """Returns median seconds of a call of each, measured in turns."""
    calls = {
        name: [make() for _ in range(SETS if rounds > 1 else 1)] for name, make in makers.items()
    }
    for sets in calls.values():
        for call in sets:
            call()  # compiles
    found: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds):
        for name, sets in calls.items():
            found[name].append(_timed(sets[turn % len(sets)], device))
    return {name: statistics.median(times) for name, times in found.items()}


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
    """Returns bytes per second of a copy, and products per second of a large matmul."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def copy() -> Call:
        a, b = torch.empty(2, size * size * 4, device=device, dtype=dtype)
        return lambda: b.copy_(a)

    def product() -> Call:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        return lambda: a @ b

    found = seconds({"copy": copy, "product": product}, device, rounds)
    return 2 * size * size * 4 * dtype.itemsize / found["copy"], 2 * size**3 / found["product"]


def line(row: Row, found: dict[str, float], ceiling: tuple[float, float]) -> str:
    """Returns a row of the table: time, rate, share of the ceiling, ratios to peers."""
    own = found["ours"]
    amount, most = (row.flops, ceiling[1]) if row.flops else (row.num_bytes, ceiling[0])
    unit = "TFLOP/s" if row.flops else "TB/s"
    rate = amount / own
    ratios = [f"{name} x{time_s / own:.2f}" for name, time_s in found.items() if name != "ours"]
    return (
        f"{row.name:44} {own * 1e3:9.3f} ms {rate / 1e12:8.3f} {unit:8} "
        f"{100 * rate / most:5.1f} %  {', '.join(ratios)}"
    )


def main(arguments: list[str]) -> int:
    """Prints the table; returns 1 where there is no GPU and none was given up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="each row once, on a CPU")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no GPU is here; --tiny runs every row once on a CPU", file=sys.stderr)
        return 1
    device, rounds = ("cpu", 1) if options.tiny else ("cuda", SETS * TURNS)
    ceiling = ceilings(device, rounds, 64 if options.tiny else 8192)
    where = "CPU, tiny sizes: no figure of speed" if options.tiny else torch.cuda.get_device_name()
    print(f"{where}: copy {ceiling[0] / 1e12:.3f} TB/s, product {ceiling[1] / 1e12:.3f} TFLOP/s")
    for row in rows(device, TINY if options.tiny else FULL):
        if options.only not in row.name:
            continue
        peers = {
            name: make
            for name, make in row.peers.items()
            if not (options.tiny and name == "inductor")
        }
        print(line(row, seconds({"ours": row.ours, **peers}, device, rounds), ceiling), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
