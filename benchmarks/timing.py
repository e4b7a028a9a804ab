"""Subprocesses with a time limit and a memory peak; the timing rule is that of `regraft.timing`."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.timing import Ratio, interleaved, median, ratio

__all__ = ["Finished", "PeerFailedError", "Ratio", "interleaved", "median", "ratio", "run"]

POLL_S = 0.002


class PeerFailedError(RuntimeError):
    """A measured command ended with an error or ran past its limit; the message ends its output."""


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
