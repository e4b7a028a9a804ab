"""Trains the small models that are not kept yet, and prints how good they are; exit 1 on a miss.

`python -m benchmarks.small_models [--only NAME] [--list]` needs the extras `torch` and `hf`, and
the digits (`make small-models` fetches them). Every figure is measured on data that was not trained
on, through ONNX Runtime and through PyTorch, with `regraft.passes.quality`. A training takes one
core for at most five minutes, and goes on where it was when it was stopped.
"""

import sys

from benchmarks.small_models.figures import MEASUREMENTS
from benchmarks.suite import run

if __name__ == "__main__":
    sys.exit(run("small_models", __doc__ or "", MEASUREMENTS))
