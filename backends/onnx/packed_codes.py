"""Codes for `ort.matmul_nbits`, taken as they lie in a file where they lie so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regraft.backends.onnx import ort_quant_ops
from regraft.ir.derive import DerivedWeight
from regraft.ir.packed_parts import packed_parts
from regraft.ir.spill import stored, stored_parts
from regraft.ir.steps import Slice, Source, Transpose
from regraft.ir.types import DType
from regraft.ir.weights import MappedWeight, Weight

SIGNED = frozenset({DType.I2, DType.I4, DType.I8})
"""Types of codes that are centred at 0; the kernel's are half of their range above."""


def nbits_codes(codes: Weight, group: int) -> Weight:
    """Returns u8[N, blocks, group * bits / 8].

    Args:
        codes: Integers [K, N] of 2, 4 or 8 bits, signed ones centred at 0.
        group: Positions of K in a block.
    """
    bits, (k, n) = codes.dtype.bits, codes.shape
    shape = n, -(-k // group), group * bits // 8
    held = _by_output(codes)
    if held is None or held.shape[1] != shape[1] * group:
        return stored(ort_quant_ops.nbits_codes(codes.numpy(), group, bits))
    if codes.dtype in SIGNED:
        parts = _centred(held, bits)
        return stored_parts(parts, DType.U8, shape, held.path.parent, held.made_from)
    return MappedWeight(
        held.path, held.offset, DType.U8, shape, growth=held.growth, made_from=held.made_from
    )


def _by_output(codes: Weight) -> MappedWeight | None:
    """Returns the rows [N, P] of which codes [K, N] are the first positions, None without any."""
    match codes.tree if isinstance(codes, DerivedWeight) else None:
        case Transpose(Source(_, MappedWeight() as held), (1, 0)):
            return held
        case Transpose(Slice(Source(_, MappedWeight() as held), 1, 0, _, 1), (1, 0)):
            return held
        case _:
            return None


def _centred(held: MappedWeight, bits: int) -> Iterator[memoryview]:
    """Yields packed codes in two's complement, half of their range added to each."""
    # of one byte's codes each, the addition of the highest bit is its change
    highest = np.uint8(sum(1 << (at + bits - 1) for at in range(0, 8, bits)))
    for part in packed_parts(held):
        yield (np.frombuffer(part, np.uint8) ^ highest).data
