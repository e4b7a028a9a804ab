"""Measures what linearized attention promises; exits 1 when a bar is missed.

`python -m benchmarks.linearize [--only NAME] [--list]` prints a table and writes
`benchmarks/results/linearize-<cpu>.json`. It needs the extras `torch` and `hf`. What is trained is
kept under `.cache/bench/linearize`: a run that was stopped goes on.
A new family of measurements is a file `benchmarks/linearize_<family>.py` with a tuple
`MEASUREMENTS`, added to the tuple below.
"""

import sys

from benchmarks import (
    linearize_decode,
    linearize_encoder,
    linearize_equal,
    linearize_example,
    linearize_text,
)
from benchmarks.measure import Measurement
from benchmarks.suite import run

MEASUREMENTS: tuple[Measurement, ...] = (
    *linearize_text.MEASUREMENTS,
    *linearize_encoder.MEASUREMENTS,
    *linearize_decode.MEASUREMENTS,
    *linearize_example.MEASUREMENTS,
    *linearize_equal.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("linearize", __doc__, MEASUREMENTS))
