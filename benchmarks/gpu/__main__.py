"""Times every row on a GPU; `--tiny` runs each once on a CPU, in the interpreter where it is on.

A run takes at most `--minutes`: where time runs short, rows go without the peers that compile, and
say so. What fails is told in its row, the others go on, and the run ends with 1 where it was ours.
The table is written to `results/` by the name of the GPU.
"""

from __future__ import annotations

import argparse
import gc
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import triton

from benchmarks.gpu.peers import absent
from benchmarks.gpu.row import COMPILED, GRAPHED, ON_A_GPU, OURS, Call, Row
from benchmarks.gpu.rows import FULL, TINY, families
from benchmarks.gpu.timing import SETS, TURNS, Measured, seconds, told

_SHARE_OF_ROWS = 0.6
"""Of the time, for rows of kernels; the rest is for whole models."""
_COMPILING_S = 75.0
"""That tuning a whole model may take: with less left, it is not begun."""

RESULTS = Path(__file__).parent / "results"


def ceilings(device: str, rounds: int, size: int) -> tuple[float, float]:
    """Returns bytes per second of a copy, and operations per second of a large matmul."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def copy() -> Call:
        a, b = torch.empty(2, size * size * 4, device=device, dtype=dtype)
        return lambda: b.copy_(a)

    def product() -> Call:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        return lambda: a @ b

    found = seconds({"copy": copy, "product": product}, device, rounds).times
    copied = 2 * size * size * 4 * dtype.itemsize / found["copy"].median
    return copied, 2 * size**3 / found["product"].median


def line(row: Row, measured: Measured, ceiling: tuple[float, float], left_out: list[str]) -> str:
    """Returns a row of the table: time, rate, share of the ceiling, ratios to peers."""
    label = f"{row.number or 'model':>5} {row.name:48}"
    found = measured.times
    own = found.get(OURS)
    missing = [f"no time for {', '.join(left_out)}"] if left_out else []
    if measured.without_room:
        missing.append(f"no room for {', '.join(measured.without_room)}")
    missing += [f"FAILED {name}: {why}" for name, why in measured.failed.items()]
    asked = [f"asked: {row.goal}"] if row.goal else []
    amount, most = (row.flops, ceiling[1]) if row.flops else (row.num_bytes, ceiling[0])
    unit = "TFLOP/s" if row.flops else "TB/s"
    if own is None:
        why = "ours failed" if OURS in measured.failed else "no room on this GPU"
        times = [
            f"{name} {t.median * 1e3:.3f} ms {amount / t.median / 1e12:.3f} {unit}"
            for name, t in found.items()
        ]
        return f"{label} {why:36} {'; '.join([*times, *missing, *asked])}"
    rate = amount / own.median
    spread = 50 * (own.high - own.low) / own.median
    ratios = ", ".join(
        f"{name} x{t.median / own.median:.2f}" for name, t in found.items() if name != OURS
    )
    host = f"host {own.host * 1e6:.0f} us" if own.host else ""
    said = "; ".join(filter(None, [ratios, host, *missing, *asked]))
    return (
        f"{label} {own.median * 1e3:9.3f} ms ±{spread:3.0f} % {rate / 1e12:8.3f} {unit:8} "
        f"{100 * rate / most:5.1f} %  {said}"
    )


def summary(rows_of_it: list[Row], ratios: Mapping[str, list[float]]) -> str:
    """Returns the line of rows that belong together: geometric means of the ratios to peers."""
    first = rows_of_it[0]
    means = [
        f"{name} x{statistics.geometric_mean(found):.2f} by geomean over {len(found)}"
        for name, found in ratios.items()
    ]
    goals = dict.fromkeys(row.goal for row in rows_of_it if row.goal)
    asked = [f"asked: {goal}" for goal in goals]
    return f"{first.number:>5} {first.together:48} {'; '.join([*means, *asked])}"


def about() -> str:
    """Returns the GPU, its memory and the versions that a table is good for."""
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory >> 30} GiB, torch {torch.__version__}, "
        f"triton {triton.__version__}, {platform.system()} {platform.machine()}"
    )


def _rows(device: str, *, is_tiny: bool, only: str) -> Iterator[Row | str]:
    """Yields rows, and what went wrong where they are made."""
    for family in families(device, TINY if is_tiny else FULL):
        try:
            yield from (row for row in family if only in row.name)
        except Exception as error:
            yield told(error)


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
    where = "CPU, tiny sizes: no figure of speed" if is_tiny else about()
    yield f"{where}: copy {ceiling[0] / 1e12:.3f} TB/s, product {ceiling[1] / 1e12:.3f} TFLOP/s"
    yield f"not installed, so not compared with: {', '.join(absent()) or 'none'}"
    groups: dict[str, tuple[list[Row], dict[str, list[float]]]] = {}
    compiling_s = _COMPILING_S
    for row in _rows(device, is_tiny=is_tiny, only=only):
        if isinstance(row, str):
            yield f"      FAILED a row: {row}"
            continue
        begun = time.monotonic()
        if begun > deadline_s and not is_tiny:
            yield f"{row.number or 'model':>5} {row.name:48} no time"
            continue
        share = _SHARE_OF_ROWS if row.number else 1.0
        is_late = begun + (0 if row.number else compiling_s) > start + share * (deadline_s - start)
        skipped = ON_A_GPU if is_tiny else COMPILED if is_late else ()
        wanted = {name: make for name, make in row.peers.items() if name not in skipped}
        left_out = [] if is_tiny else [name for name in row.peers if name in skipped]
        found = seconds({OURS: row.ours, **wanted}, device, rounds)
        yield line(row, found, ceiling, left_out)
        if row.together and OURS in found.times:
            members, ratios = groups.setdefault(row.together, ([], {}))
            members.append(row)
            for name, times in found.times.items():
                if name != OURS:
                    ratios.setdefault(name, []).append(times.median / found.times[OURS].median)
        if not row.number and not left_out:
            compiling_s = max(compiling_s, time.monotonic() - begun)
        _forget()
    for members, ratios in groups.values():
        yield summary(members, ratios)


def _forget() -> None:
    """Frees what a row held, and what PyTorch compiled for it: recompilations are counted."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def has_failed(lines: list[str]) -> bool:
    """Whether something of ours failed; that a peer did is told in its row alone."""
    ours = re.compile(rf"FAILED ({OURS}|{GRAPHED}|a row):")
    return any(ours.search(text) for text in lines)


def main(arguments: list[str]) -> int:
    """Prints the table; returns 1 where something of ours failed, or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="each row once, on a CPU")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--minutes", type=float, default=7.5, help="that the run may take")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no GPU is here; --tiny runs every row once on a CPU", file=sys.stderr)
        return 1
    device = "cpu" if options.tiny else "cuda"
    deadline_s = time.monotonic() + 60 * options.minutes
    lines = []
    for text in table(device, is_tiny=options.tiny, only=options.only, deadline_s=deadline_s):
        print(text, flush=True)
        lines.append(text)
    if not options.tiny and not options.only:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', torch.cuda.get_device_name())}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)
    return int(has_failed(lines))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
