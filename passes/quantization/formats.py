"""Formats of quantized numbers, as data: which integers there are and what they stand for.

One meaning for all of them: `x = scale * (code - zero_point)`. Symmetric formats have no zero
point. A scale serves the whole tensor, one position of an axis (a channel), or a group of positions
of the axis that a product sums over.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.errors import UsageError
from regraft.ir.types import DType
from regraft.passes.pipeline import suggest


@dataclass(frozen=True, slots=True)
class Format:
    """Integers of a quantized tensor.

    Args:
        name: As options spell it.
        dtype: Element type of the codes.
        low: Least code in use.
        high: Largest code in use.
        symmetric: Whether the zero point is 0 and not stored.
    """

    name: str
    dtype: DType
    low: int
    high: int
    symmetric: bool

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.dtype.bits


# -128 is left out: its negation is none, and kernels that form |code| overflow on it
INT8 = Format("int8", DType.I8, -127, 127, True)
UINT8 = Format("uint8", DType.U8, 0, 255, False)
INT4 = Format("int4", DType.I4, -8, 7, True)
UINT4 = Format("uint4", DType.U4, 0, 15, False)
INT2 = Format("int2", DType.I2, -2, 1, True)
UINT2 = Format("uint2", DType.U2, 0, 3, False)
# 7 bits in 8: a sum of two products of u8 by such codes fits the 16 bits of CPUs without VNNI
INT7 = Format("int7", DType.I8, -63, 63, True)

FORMATS: dict[str, Format] = {
    each.name: each for each in (INT8, UINT8, INT7, INT4, UINT4, INT2, UINT2)
}


def format_of(name: str, option: str) -> Format:
    """Returns the format of a name.

    Raises:
        UsageError: When there is none.
    """
    found = FORMATS.get(name)
    if found is None:
        raise UsageError(
            f"pass `quantize`, option `{option}`: there is no format `{name}`",
            hint=suggest(name, FORMATS),
        )
    return found
