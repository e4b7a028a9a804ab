"""Quantization: formats, calibration, methods, and the pass `quantize`."""

from regraft.passes.protocol import Pass
from regraft.passes.quantization.mend import MendQuantized
from regraft.passes.quantization.quantize import Quantize
from regraft.passes.quantization.quantize_softmax import QuantizeSoftmax
from regraft.passes.quantization.vq_head import VqHead
from regraft.passes.quantization.quantize_mixed import QuantizeMixed

__all__ = ["PASSES", "MendQuantized", "Quantize", "QuantizeMixed"]

PASSES: tuple[type[Pass], ...] = (Quantize, QuantizeMixed, MendQuantized)
