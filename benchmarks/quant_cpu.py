"""Measures what quantization for CPUs promises and exits 1 when a bar is missed.

`python -m benchmarks.quant_cpu [--only NAME] [--list]` prints a table and writes
`benchmarks/results/quant_cpu-<cpu>.json`. The bars are those of CPUs with AVX-512 VNNI. It needs
the packages that `make recovery-models` installs, and PyTorch the first time, which captures the
encoder. `make openvino` adds rows of OpenVINO and NNCF.
"""

import sys

from benchmarks import (
    quant_conv,
    quant_decoder,
    quant_encoder,
    quant_folds,
    quant_lint,
    quant_memory,
    quant_mixed,
    quant_openvino,
    quant_pruned,
    quant_weights,
)
from benchmarks.suite import run

MEASUREMENTS = (
    *quant_encoder.MEASUREMENTS,
    *quant_weights.MEASUREMENTS,
    *quant_decoder.MEASUREMENTS,
    *quant_folds.MEASUREMENTS,
    *quant_mixed.MEASUREMENTS,
    *quant_conv.MEASUREMENTS,
    *quant_pruned.MEASUREMENTS,
    *quant_memory.MEASUREMENTS,
    *quant_openvino.MEASUREMENTS,
    *quant_lint.MEASUREMENTS,
)

if __name__ == "__main__":
    sys.exit(run("quant_cpu", __doc__ or "", MEASUREMENTS))
