"""Fuzzing: 10,000 random graphs, and damaged copies of trained models.

Each case must end in a result that ONNX Runtime agrees with, or in a clear refusal of what ONNX
Runtime does not run; an exception, a crash, a hang or a wrong number is a miss. Cases run in
worker processes, so that a crash or a hang names its case; one after the line that hands the
damaged file to ONNX Runtime is the runtime's.
"""

import json
import os
import selectors
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks import models
from benchmarks.measure import ROOT, Measurement, Row, Settings, held, shown

GRAPHS = int(os.environ.get("REGRAFT_FUZZ_GRAPHS", "10000"))
FLIPS = int(os.environ.get("REGRAFT_FUZZ_FLIPS", "10000"))
FLIPPED = ("ppocr-cls", "silero_vad_16k_op15", "magika")
CHUNK = 500
"""Cases of one worker process."""

HANG_S = 30.0
MAX_NAMED = 5
MISSES = ("error", "wrong", "wrongly refused", "crash", "hang")


@dataclass
class Tally:
    """Outcomes of a range of cases."""

    counts: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)

    def note(self, case: int, outcome: str, detail: str) -> None:
        """Counts one case; the outcomes in `MISSES` are misses."""
        self.counts[outcome] += 1
        if outcome in MISSES:
            self.misses.append(f"case {case}: {outcome}: {detail}"[:200])


def fuzz(settings: Settings, kind: str, first: int, last: int, names: Sequence[str]) -> Tally:
    """Runs cases `first` to `last` - 1, restarting the worker behind a case that ends it."""
    tally = Tally()
    while first < last:
        first = _run_worker(settings, kind, first, last, names, tally)
    return tally


def _in_parallel(settings: Settings, kind: str, count: int, names: Sequence[str]) -> Tally:
    """Runs `count` cases, a worker on every core."""
    ranges = [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    total = Tally()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda ends: fuzz(settings, kind, ends[0], ends[1], names), ranges)
        for tally in runs:
            total.counts += tally.counts
            total.misses += tally.misses
    return total


def _run_worker(
    settings: Settings, kind: str, first: int, last: int, names: Sequence[str], tally: Tally
) -> int:
    """Reads one worker until it ends; returns the case to go on with."""
    command = [settings.python, "-W", "ignore", "-m", "tests.fuzz.worker", kind]
    worker = subprocess.Popen(
        [*command, str(first), str(last), *names], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    if worker.stdout is None:
        raise AssertionError("the worker has no output")
    case, stage, buffer = first, "start", b""
    selector = selectors.DefaultSelector()
    selector.register(worker.stdout, selectors.EVENT_READ)
    hung = False
    while True:
        if not selector.select(HANG_S):
            worker.kill()
            hung = True
            break
        chunk = os.read(worker.stdout.fileno(), 1 << 16)
        if not chunk:
            break
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            entry = json.loads(line)
            case, stage = entry["case"], entry["stage"]
            if stage == "done":
                tally.note(case, entry["outcome"], entry["detail"])
    code = worker.wait()
    worker.stdout.close()
    if stage == "done" and case == last - 1:
        return last
    if stage == "runtime":
        tally.note(case, "unproven", "")
    elif stage != "done":
        tally.note(case, "hang" if hung else "crash", f"exit code {code}")
    return case + 1


def measure(settings: Settings) -> Iterator[Row]:
    """Yields counts of outcomes and the misses."""
    for name in FLIPPED:
        models.find(models.named(name))  # all of them are installed
    for kind, count, names in (("graphs", GRAPHS, ()), ("flips", FLIPS, FLIPPED)):
        start = time.monotonic()
        tally = _in_parallel(settings, kind, count, names)
        seconds = time.monotonic() - start
        label = f"{count:,} random graphs" if kind == "graphs" else f"{count:,} damaged files"
        for outcome, number in sorted(tally.counts.items()):
            yield shown(f"{label}: {outcome}", number, "cases")
        note = "; ".join(tally.misses[:MAX_NAMED]) or f"{seconds:.0f} s"
        yield held(f"{label}: no crash, no hang, no wrong result", not tally.misses, note)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("fuzz", "random graphs and damaged files", measure),
)
