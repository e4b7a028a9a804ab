"""Measures every figure of PyTorch in and out, and exits 1 when one is missed.

`python -m benchmarks.torch_capture [--only NAME] [--list]` prints a table and writes
`benchmarks/results/torch_capture-<cpu>.json` with the hardware and the versions named. The two
coverages measure a model again only when the code, its configuration or a version changes; one that
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
