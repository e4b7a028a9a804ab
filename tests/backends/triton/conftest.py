"""Runs kernels in Triton's interpreter, which has to be chosen before Triton is imported."""

import os
import sys

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
