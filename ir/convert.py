"""Element type conversion with ONNX's rules: saturation, wrapping, tiny floats, strings."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.types import DType, dtype_of

Array = np.ndarray[Any, Any]

_F8 = frozenset({DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ})
TINY_FLOATS = _F8 | {DType.F8E8M0, DType.F4E2M1}
"""Floats of at most 8 bits: converting to one is quantization, not a choice of precision."""


def convert(array: Array, target: DType, *, saturate: bool = True, round_mode: str = "up") -> Array:
    """Returns `array` in another element type.

    Floats truncate to integers, integers wrap, anything but zero is true. Float to integer out of
    range is undefined.

    Args:
        array: Any element type, 4- and 2-bit types unpacked.
        target: The element type of the result.
        saturate: For 8-bit floats: out of range gives the largest finite value, otherwise NaN or
            infinity.
        round_mode: For `f8e8m0`: `up`, `down` or `nearest` power of two.
    """
    source = dtype_of(array)
    if source is target:
        return array
    if target is DType.STRING:
        return _to_strings(array, source)
    if source is DType.STRING:
        return _from_strings(array, target)
    if array.dtype.kind not in "fiubc" or source.bits < 8:
        array = array.astype(np.float32 if source.is_float else np.int8)  # exact
    if target is DType.BOOL:
        return np.asarray(array != 0)
    if target is DType.F8E8M0:
        return _to_power_of_two(array, saturate, round_mode)
    if target in TINY_FLOATS:
        return _to_tiny_float(array, target, saturate)
    if target.is_integer and target.bits < 32 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    return array.astype(target.numpy)


def _to_tiny_float(array: Array, target: DType, saturate: bool) -> Array:
    wide = array if array.dtype == np.float64 else array.astype(np.float32)
    if target in _F8 and saturate:
        largest = float(ml_dtypes.finfo(target.numpy).max)
        wide = np.clip(wide, -largest, largest)  # NaN stays NaN
    return wide.astype(target.numpy)


def _to_power_of_two(array: Array, saturate: bool, round_mode: str) -> Array:
    """Returns f8e8m0: only an exponent with bias 127; code 255 is NaN; the sign is dropped."""
    size = np.abs(array.astype(np.float64))
    mantissa, exponent = np.frexp(size)  # size = mantissa * 2**exponent, 0.5 <= mantissa < 1
    code = exponent.astype(np.int64) + 126
    match round_mode:
        case "up":
            code += mantissa > 0.5
        case "nearest":
            code += mantissa >= 0.75
        case "down":
            pass
        case _:
            raise ValueError(f"round_mode `{round_mode}`: expected `up`, `down` or `nearest`")
    code = np.where(size == 0, -1, np.where(np.isinf(size), 255, code))
    code = np.clip(code, 0, 254) if saturate else np.where((code < 0) | (code > 254), 255, code)
    return np.where(np.isnan(size), 255, code).astype(np.uint8).view(DType.F8E8M0.numpy)


def _to_strings(array: Array, source: DType) -> Array:
    if source.is_float:
        texts = [_float_text(float(item)) for item in array.reshape(-1)]
    else:
        texts = [str(int(item)) for item in array.reshape(-1)]  # truth values are 1 and 0
    result = np.empty(len(texts), object)
    result[:] = texts
    return result.reshape(array.shape)


def _float_text(value: float) -> str:
    # 8 significant digits, as ONNX Runtime prints floats of every width
    text = f"{value:.8g}"
    return {"nan": "NaN", "inf": "INF", "-inf": "-INF"}.get(text, text)


def _from_strings(array: Array, target: DType) -> Array:
    parse = float if target.is_float else _parse_int
    values = [parse(_text(item)) for item in array.reshape(-1)]
    plain = np.array(values, np.float64 if target.is_float else np.int64)
    return convert(plain, target).reshape(array.shape)


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _parse_int(text: str) -> int:
    return int(float(text)) if any(mark in text for mark in ".eE") else int(text)
