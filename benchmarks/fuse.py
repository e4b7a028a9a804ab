"""Measures every figure that fusion promises and exits 1 when one is missed.

`python -m benchmarks.fuse [--only NAME] [--list]` prints a table and writes
`benchmarks/results/fuse-<cpu>.json` with the hardware and the versions named. The peers' columns of
the coverage come from `python -m benchmarks.fuse_peers`, which measures a fixture again only when
it or a version changes.

A new family of measurements is a file `benchmarks/fuse_<family>.py` with a tuple `MEASUREMENTS`,
added to the tuple below.
"""

import sys

from benchmarks import fuse_blocks, fuse_half, fuse_latency, fuse_raise, fuse_stack, fuse_tools
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *fuse_blocks.MEASUREMENTS,
    *fuse_stack.MEASUREMENTS,
    *fuse_latency.MEASUREMENTS,
    *fuse_half.MEASUREMENTS,
    *fuse_raise.MEASUREMENTS,
    *fuse_tools.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("fuse", __doc__, MEASUREMENTS))
