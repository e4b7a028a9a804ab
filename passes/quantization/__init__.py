"""Quantization: formats, calibration, methods, and the pass `quantize`."""

from regraft.passes.protocol import Pass
from regraft.passes.quantization.mend import MendQuantized
from regraft.passes.quantization.quantize import Quantize
from regraft.passes.quantization.quantize_mixed import QuantizeMixed
from regraft.passes.quantization.quantize_softmax import QuantizeSoftmax
from regraft.passes.quantization.vq_head import VqHead

__all__ = [
    "PASSES",
    "MendQuantized",
    "Quantize",
    "QuantizeMixed",
    "QuantizeSoftmax",
    "VqHead",
]

PASSES: tuple[type[Pass], ...] = (
    Quantize, QuantizeMixed, MendQuantized, QuantizeSoftmax, VqHead,
)  # fmt: skip
