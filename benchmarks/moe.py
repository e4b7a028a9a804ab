"""Measures what mixtures of experts promise and exits 1 when a bar is missed.

`python -m benchmarks.moe [--only NAME] [--list]` prints a table and writes
`benchmarks/results/moe-<cpu>.json`. `captured` needs PyTorch and `transformers`.

A new family of measurements is a file `benchmarks/moe_<family>.py` with a tuple `MEASUREMENTS`,
added to the tuple below.
"""

import sys

from benchmarks import (
    moe_codes,
    moe_drop,
    moe_encoder,
    moe_example,
    moe_families,
    moe_fewer,
    moe_folders,
    moe_identity,
    moe_kernels,
    moe_memory,
    moe_partition,
    moe_small,
    moe_torch,
)
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *moe_identity.MEASUREMENTS,
    *moe_torch.MEASUREMENTS,
    *moe_drop.MEASUREMENTS,
    *moe_fewer.MEASUREMENTS,
    *moe_small.MEASUREMENTS,
    *moe_partition.MEASUREMENTS,
    *moe_encoder.MEASUREMENTS,
    *moe_example.MEASUREMENTS,
    *moe_families.MEASUREMENTS,
    *moe_kernels.MEASUREMENTS,
    *moe_codes.MEASUREMENTS,
    *moe_folders.MEASUREMENTS,
    *moe_memory.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("moe", __doc__, MEASUREMENTS))
