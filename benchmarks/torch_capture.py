"""Measures every figure of PyTorch in and out, and exits 1 when one is missed.

`python -m benchmarks.torch_capture [--only NAME] [--again] [--list]` prints a table and writes
`benchmarks/results/torch_capture-<cpu>.json` with the hardware and the versions named. The two
coverages keep what became of every model in `benchmarks/results/torch_capture-<library>.jsonl`,
with the commit it was measured at, and measure again what failed or changed, and a few others;
`--again` measures every model that other code was measured with, as `make full` does. A run that
was stopped goes on where it was. It needs PyTorch, `transformers`, `timm` and `torchvision`
(`make torch-bench`).

A new family of measurements is a file `benchmarks/torch_<family>.py` with a tuple `MEASUREMENTS`,
added to the tuple below.
"""

import sys

from benchmarks import torch_errors, torch_families, torch_round_trip, torch_speed, torch_timm
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *torch_families.MEASUREMENTS,
    *torch_timm.MEASUREMENTS,
    *torch_round_trip.MEASUREMENTS,
    *torch_errors.MEASUREMENTS,
    *torch_speed.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("torch_capture", __doc__, MEASUREMENTS))
