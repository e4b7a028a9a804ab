"""Measures every figure that pruning promises and exits 1 when one is missed.

`python -m benchmarks.prune [--only NAME] [--list]` prints a table and writes
`benchmarks/results/prune-<cpu>.json` with the hardware and the versions named. How many families
prune is a command of its own: `python -m benchmarks.prune_coverage`.
"""

import sys

from benchmarks import prune_budget, prune_latency, prune_real
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *prune_budget.MEASUREMENTS,
    *prune_latency.MEASUREMENTS,
    *prune_real.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("prune", __doc__, MEASUREMENTS))
