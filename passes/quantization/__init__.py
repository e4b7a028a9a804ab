"""Quantization: formats, calibration, methods, and the pass `quantize`."""

from regraft.passes.protocol import Pass
from regraft.passes.quantization.mend import MendQuantized
from regraft.passes.quantization.quantize import Quantize

__all__ = ["PASSES", "MendQuantized", "Quantize"]

PASSES: tuple[type[Pass], ...] = (Quantize, MendQuantized)
