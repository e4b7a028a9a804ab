"""Interleaved timing with ratios per round; subprocesses with a time limit and a memory peak."""

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.002


class PeerFailedError(RuntimeError):
    """A measured command ended with an error or ran past its limit; the message ends its output."""


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
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


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


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Returns, for every call, its seconds in each round; the order rotates from round to round."""
    seconds: list[list[float]] = [[0.0] * rounds for _ in calls]
    for call in calls:
        call()  # caches warm, allocators grown
    for idx in range(rounds):
        for turn in range(len(calls)):
            which = (idx + turn) % len(calls)
            start = time.perf_counter()
            calls[which]()
            seconds[which][idx] = time.perf_counter() - start
    return seconds


@dataclass(frozen=True, slots=True)
class Finished:
    """What a subprocess left: exit status, wall seconds, peak resident bytes, and its output."""

    returncode: int
    wall_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str
    timed_out: bool

    def require_success(self, what: str) -> "Finished":
        """Returns itself.

        Raises:
            PeerFailedError: the status is not 0.
        """
        if self.returncode == 0:
            return self
        reason = f"ran past {self.wall_s:.0f} s" if self.timed_out else f"exit {self.returncode}"
        raise PeerFailedError(f"{what}: {reason}\n{self.stdout[-500:]}\n{self.stderr[-1500:]}")


def run(
    argv: Sequence[str],
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Runs a command to its end or its limit.

    The peak is the kernel's `ru_maxrss` of the process, mapped file pages included. A process
    starts with the peak of the one that launched it, so call this from a small process.

    Args:
        argv: command and arguments.
        timeout_s: the process is killed after this time, and `timed_out` set.
        cwd: working folder.
        env: variables set on top of the environment.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, stdout=out, stderr=err, cwd=cwd, env={**os.environ, **(env or {})}
        )
        timed_out = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            wall_s = time.perf_counter() - start
            if pid:
                break
            if wall_s > timeout_s and not timed_out:
                timed_out = True
                process.kill()
            time.sleep(POLL_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Finished(
            process.returncode,
            wall_s,
            usage.ru_maxrss * 1024,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            timed_out,
        )
