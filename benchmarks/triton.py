"""Measures what the Triton backend promises without a GPU; exits 1 on a miss.

`python -m benchmarks.triton [--only NAME] [--list]` prints a table and writes
`benchmarks/results/triton-<cpu>.json`. It needs the extras `torch`, `hf` and `triton`; `make
triton-bench` installs Triton 3.6 and 3.9 beside it. `python -m benchmarks.gpu` measures speed.
"""

import sys

from benchmarks import triton_compiled, triton_packages, triton_tested
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *triton_packages.MEASUREMENTS,
    *triton_compiled.MEASUREMENTS,
    *triton_tested.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("triton", __doc__, MEASUREMENTS))
