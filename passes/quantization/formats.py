"""Formats of quantized numbers, as data: which codes there are and what they stand for.

One meaning for all of them: `x = scale * (value(code) - zero_point)`. The value of an integer is
the integer, that of other formats stands in a table. Symmetric formats have no zero point. A scale
serves the whole tensor, one position of an axis (a channel), or a group of positions of the axis
that a product sums over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import ml_dtypes
import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.types import DType
from regraft.passes.pipeline import suggest

Array = np.ndarray[Any, Any]

Scales = Literal["f32", "e8m0", "e4m3"]
"""How scales are stored: f32, powers of two (MX), or f8e4m3 with one f32 for the tensor (NV)."""


@dataclass(frozen=True, slots=True)
class Format:
    """Codes of a quantized tensor.

    Args:
        name: As options spell it.
        dtype: Element type of the codes.
        low: Least code in use.
        high: Largest code in use.
        symmetric: Whether the zero point is 0 and not stored.
        table: What code i stands for, None for integers; NaN where a code stands for nothing.
        scales: How scales are stored.
        block: Inputs that share a scale where nobody says otherwise, 0 for the usual number.
    """

    name: str
    dtype: DType
    low: int
    high: int
    symmetric: bool
    table: tuple[float, ...] | None = None
    scales: Scales = "f32"
    block: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether codes are the numbers themselves."""
        return self.table is None

    @property
    def top(self) -> float:
        """The largest value of a code."""
        return float(self.high) if self.table is None else float(np.nanmax(self.table))

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

INT3 = Format("int3", DType.I4, -4, 3, True)
UINT3 = Format("uint3", DType.U4, 0, 7, False)

# Quantiles of the normal distribution with an exact 0 (Dettmers et al., QLoRA, 2023, appendix E)
_NORMAL = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def _bits_of(kind: Any, count: int) -> tuple[float, ...]:
    """Returns what every bit pattern of a small float stands for; NaN also for infinities."""
    patterns = np.arange(count, dtype=np.uint8).view(kind).astype(np.float64)
    return tuple(float(each) if np.isfinite(each) else float("nan") for each in patterns)


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = (*_E2M1, *(-each for each in _E2M1))

NF4 = Format("nf4", DType.U4, 0, 15, True, _NORMAL, block=64)
FP4 = Format("fp4", DType.U4, 0, 15, True, _FP4, block=32)
MXFP4 = Format("mxfp4", DType.U4, 0, 15, True, _FP4, "e8m0", 32)
NVFP4 = Format("nvfp4", DType.U4, 0, 15, True, _FP4, "e4m3", 16)
FP8_E4M3 = Format("fp8_e4m3", DType.U8, 0, 255, True, _bits_of(ml_dtypes.float8_e4m3fn, 256))
FP8_E5M2 = Format("fp8_e5m2", DType.U8, 0, 255, True, _bits_of(ml_dtypes.float8_e5m2, 256))

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        INT8, UINT8, INT7, INT4, UINT4, INT3, UINT3, INT2, UINT2,
        NF4, FP4, MXFP4, NVFP4, FP8_E4M3, FP8_E5M2,
    )
}  # fmt: skip


@lru_cache(maxsize=32)
def _levels(fmt: Format) -> tuple[Array, Array]:
    """Returns the codes of a table in order of their values, and the borders between these."""
    table = np.asarray(fmt.table, np.float64)
    codes = np.argsort(table, kind="stable")[: int(np.isfinite(table).sum())]
    values = table[codes]
    kept = np.concatenate([[True], np.diff(values) > 0])  # +0 and -0 are one level
    values, codes = values[kept], codes[kept].astype(np.uint8)
    return codes, ((values[1:] + values[:-1]) / 2).astype(np.float32)


def nearest(fmt: Format, numbers: Array, zero: Array | float = 0.0) -> Array:
    """Returns the codes whose values are nearest to numbers in units of the scale.

    Args:
        fmt: The format.
        numbers: f32, already divided by the scale.
        zero: Zero point, of integers only.
    """
    if fmt.table is None:
        codes = np.rint(numbers)
        codes += zero
        np.clip(codes, fmt.low, fmt.high, out=codes)
        return codes.astype(np.uint8 if fmt.low == 0 else np.int8)
    ordered, borders = _levels(fmt)
    return np.asarray(ordered[np.searchsorted(borders, numbers)])


def values_of(fmt: Format, codes: Array) -> Array:
    """Returns what codes stand for before zero point and scale, f32."""
    if fmt.table is None:
        return codes.astype(np.float32)
    return np.asarray(fmt.table, np.float32)[codes]


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
