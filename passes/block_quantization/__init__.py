"""Quantization of whole blocks, fitted by gradients: the pass `quantize-blocks`."""

from regraft.passes.block_quantization.quantize_blocks import QuantizeBlocks
from regraft.passes.protocol import Pass

__all__ = ["PASSES", "QuantizeBlocks"]

PASSES: tuple[type[Pass], ...] = (QuantizeBlocks,)
