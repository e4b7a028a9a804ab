"""Floats and arrays of the text form, in both directions.

Every number keeps its bits: floats print with the shortest digits that read back equal, and arrays
for which digits cannot do that (NaN payloads) or would be long print as hexadecimal bytes.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np

from regraft.ir.text.lexer import NUMBER, Scanner, quote
from regraft.ir.types import DType, dtype_of
from regraft.ir.weights import pack, unpack

Array = np.ndarray[Any, Any]

MAX_DIGITS = 256
"""Arrays of more elements print as hexadecimal bytes."""

MAX_SPLAT_BYTES = 1 << 26
"""Literals hold their elements: larger ones are refused before memory is taken."""

_FLOAT = re.compile(r"-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|(?:inf|nan)\b)")
_NAN_BITS = re.compile(r"nan\(0x([0-9a-f]{16})\)")
_DEFAULT_NAN = struct.unpack("<Q", struct.pack("<d", math.nan))[0]


def print_float(value: float) -> str:
    """Returns a float with a point, an exponent or a name, so that it never reads as an integer."""
    if math.isnan(value):
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        return "nan" if bits == _DEFAULT_NAN else f"nan(0x{bits:016x})"
    return float.__repr__(value)


def scan_float(s: Scanner) -> float | None:
    """Consumes a float as `print_float` writes it, or returns None."""
    match = s.match(_NAN_BITS)
    if match is not None:
        return float(struct.unpack("<d", struct.pack("<Q", int(match[1], 16)))[0])
    match = s.match(_FLOAT)
    return None if match is None else float(match[0])


def print_array(array: Array) -> str:
    """Returns an array with its type: `f32[3] [1, 2.5, -3]`, `f32[9] splat 0`, `u8[2] x"00ff"`."""
    head = f"{dtype_of(array)}[{', '.join(map(str, array.shape))}]"
    return f"{head} {print_elements(array)}"


def print_elements(array: Array) -> str:
    """Returns the elements of an array in row-major order, without its type.

    They stand in brackets unless the array has rank 0.
    """
    dtype = dtype_of(array)
    flat = array.reshape(-1)
    if dtype is DType.STRING:
        return _join([_print_text(item) for item in flat.tolist()], array.ndim)
    if flat.size > 8 and not dtype.is_complex:
        raw = np.ascontiguousarray(flat).view(np.uint8).reshape(flat.size, -1)
        if (raw == raw[0]).all():
            item = _digits(flat[:1], dtype)
            if item is not None:
                return f"splat {item[0]}"
    digits = None if flat.size > MAX_DIGITS or dtype.is_complex else _digits(flat, dtype)
    if digits is None:
        return f'x"{pack(array, dtype).hex()}"'
    return _join(digits, array.ndim)


def _join(items: list[str], rank: int) -> str:
    return f"[{', '.join(items)}]" if rank else items[0]


def _print_text(item: Any) -> str:
    return f'x"{item.hex()}"' if isinstance(item, bytes) else quote(str(item))


def _digits(flat: Array, dtype: DType) -> list[str] | None:
    if dtype is DType.BOOL:
        return ["true" if item else "false" for item in flat.tolist()]
    if dtype.is_integer:
        return [str(int(item)) for item in flat]
    digits = [str(item).removesuffix(".0") for item in flat]
    back = np.array([float(item) for item in digits], np.float64).astype(dtype.numpy)
    if not np.array_equal(back.view(np.uint8), np.ascontiguousarray(flat).view(np.uint8)):
        return None
    return digits


def scan_elements(s: Scanner, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Consumes what `print_elements` wrote.

    Raises:
        ParseError: When the number of elements or their form does not fit.
    """
    start, size = s.pos, math.prod(shape)
    if s.take_word("splat"):
        if dtype.nbytes(size) > MAX_SPLAT_BYTES:
            raise s.error("too large for a literal", at=start, hint="make it a weight")
        return np.full(shape, scan_item(s, dtype), dtype.numpy)
    if not s.peek("["):
        blob = s.blob()
        if blob is None and shape == ():
            return scan_item(s, dtype)
        if blob is not None:
            return _from_bytes(s, blob, dtype, shape, start)
    s.expect("[", "and the elements of an array")
    items: list[Any] = []
    while not s.take("]"):
        if items:
            s.expect(",")
        items.append(_scan_element(s, dtype))
    if len(items) != size:
        raise s.error(f"expected {size} elements, found {len(items)}", at=start)
    return _from_items(s, items, dtype, start).reshape(shape)


def scan_item(s: Scanner, dtype: DType) -> Array:
    """Consumes one element, or the bytes of one, as a rank-0 array.

    Raises:
        ParseError: When there is none.
    """
    start = s.pos
    blob = None if dtype is DType.STRING else s.blob()
    if blob is not None:
        return _from_bytes(s, blob, dtype, (), start)
    return _from_items(s, [_scan_element(s, dtype)], dtype, start).reshape(())


def _from_bytes(s: Scanner, blob: bytes, dtype: DType, shape: tuple[int, ...], start: int) -> Array:
    expected = dtype.nbytes(math.prod(shape))
    if dtype is DType.STRING or len(blob) != expected:
        raise s.error(f"expected {expected} bytes, found {len(blob)}", at=start)
    return unpack(np.frombuffer(blob, np.uint8), dtype, shape).copy()


def _from_items(s: Scanner, items: list[Any], dtype: DType, start: int) -> Array:
    if dtype is DType.STRING:
        array = np.empty(len(items), object)
        array[:] = items
        return array
    if not dtype.is_float:
        # 4- and 2-bit types convert from i64 alone, 64-bit ones only directly
        wide = dtype.numpy if dtype.bits >= 8 else np.dtype(np.int64)
        return np.array(items, wide).astype(dtype.numpy)
    exact = np.array(items, np.float64)
    with np.errstate(over="ignore"):
        array = exact.astype(dtype.numpy)
    if (np.isfinite(exact) & ~np.isfinite(array.astype(np.float64))).any():
        raise s.error(f"a number is too large for {dtype}", at=start)
    return array


def _scan_element(s: Scanner, dtype: DType) -> Any:
    if dtype is DType.STRING:
        raw = s.blob()
        return s.string() if raw is None else raw
    if dtype is DType.BOOL:
        start = s.pos
        word = s.expect_word("`true` or `false`")
        if word not in ("true", "false"):
            raise s.error(f"expected `true` or `false`, found `{word}`", at=start)
        return word == "true"
    if dtype.is_integer:
        start, value = s.pos, s.integer(f"an element of type {dtype}")
        signed = dtype.value.startswith("i")
        low = -(1 << dtype.bits - 1) if signed else 0
        if not low <= value < low + (1 << dtype.bits):
            raise s.error(f"{value} does not fit {dtype}", at=start)
        return value
    value_ = scan_float(s)
    if value_ is not None:
        return value_
    match = s.match(NUMBER)
    if match is None:
        raise s.error(f"expected a number of type {dtype}, found {s.found()}")
    return float(match[0])
