"""Measures every figure the core promises and exits 1 when one is missed.

`python -m benchmarks.core [--only NAME] [--list]` prints a table and writes
`benchmarks/results/core-<cpu>.json` with the hardware and the versions named. The peers run as
subprocesses of the interpreter that `make peers` prepares.

A new family of measurements is a file `benchmarks/core_<family>.py` with a tuple `MEASUREMENTS`,
added to the tuple below.
"""

import sys

from benchmarks import (
    core_badinput,
    core_checks,
    core_conformance,
    core_fuzz,
    core_memory,
    core_models,
    core_simplify,
    core_startup,
)
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *core_startup.MEASUREMENTS,
    *core_simplify.MEASUREMENTS,
    *core_memory.MEASUREMENTS,
    *core_checks.MEASUREMENTS,
    *core_conformance.MEASUREMENTS,
    *core_models.MEASUREMENTS,
    *core_badinput.MEASUREMENTS,
    *core_fuzz.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("core", __doc__, MEASUREMENTS))
