"""Measures what the attention operators and `replace-softmax` promise; exits 1 on a miss.

`python -m benchmarks.attention [--only NAME] [--list]` prints a table and writes
`benchmarks/results/attention-<cpu>.json`. It needs the extras `torch` and `hf`, and `timm`.
A new family of measurements is a file `benchmarks/attention_<family>.py` with a tuple
`MEASUREMENTS`, added to the tuple below.
"""

import sys

from benchmarks import attention_coverage, attention_speed, attention_training
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *attention_coverage.MEASUREMENTS,
    *attention_speed.MEASUREMENTS,
    *attention_training.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("attention", __doc__, MEASUREMENTS))
