"""Attribute values of the text form, in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import Blob
from regraft.ir.dims import Dim
from regraft.ir.opspec import AttrKind
from regraft.ir.text.arrays import print_array, print_float, scan_elements, scan_float
from regraft.ir.text.lexer import Scanner, quote
from regraft.ir.text.types import DTYPES, TypeScanner
from regraft.ir.types import DType, TensorType, Type

_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "none": None}
_TYPE_WORDS = frozenset(("seq", "optional", "map", "sparse"))
# What may follow a type; elements follow the type of an array instead.
_AFTER_TYPE = (",", "}", "]", ")")


def print_value(value: Any) -> str:
    """Returns an attribute value or metadata entry as text.

    Raises:
        TypeError: When the text form has no notation for the value's type.
    """
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer | Dim | DType | Type):
        return str(value)
    match value:
        case None:
            return "none"
        case float() | np.floating():
            return print_float(float(value))
        case str():
            return quote(value)
        case tuple() | list():
            return f"[{', '.join(map(print_value, value))}]"
        case dict():
            items = (f"{quote(str(key))}: {print_value(item)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
        case np.ndarray():
            return print_array(value)
        case bytes():
            return f'x"{value.hex()}"'
        case Blob():
            return f'blob {quote(value.kind)} x"{value.data.hex()}"'
        case _:
            raise TypeError(f"the text form has no notation for a {type(value).__name__}: {value}")


def scan_value(s: Scanner, types: TypeScanner, kind: AttrKind = AttrKind.ANY) -> Any:
    """Consumes an attribute value.

    Args:
        s: The scanner.
        types: Reader of dims and types.
        kind: The kind that the operator declares; in sizes a word is always a symbol.

    Raises:
        ParseError: When there is none.
    """
    if s.take("["):
        items: list[Any] = []
        while not s.take("]"):
            if items:
                s.expect(",")
            items.append(scan_value(s, types, kind))
        return tuple(items)
    word = s.peek_word()
    if kind in (AttrKind.DIM, AttrKind.DIMS) and word != "none":
        return types.dim(s)
    if s.peek('"'):
        return s.string()
    if s.peek('x"'):
        return s.blob()
    if s.peek("{"):
        return _scan_dict(s, types)
    number = scan_float(s)
    if number is not None:
        return number
    return _scan_word(s, types, word)


def _scan_word(s: Scanner, types: TypeScanner, word: str) -> Any:
    if word in _CONSTANTS:
        s.word()
        return _CONSTANTS[word]
    if word == "blob":
        return _scan_blob(s)
    if word in DTYPES:
        return _scan_typed(s, types)
    if word in _TYPE_WORDS or s.peek("?"):
        return types.type(s)
    return types.dim(s)


def _scan_typed(s: Scanner, types: TypeScanner) -> Any:
    start = s.pos
    word = s.expect_word("an element type")
    if not s.peek("["):
        return DTYPES[word]
    s.pos = start
    type_ = types.type(s)
    if s.at_end() or s.peek(_AFTER_TYPE):
        return type_
    return scan_array_of(s, type_, start)


def scan_array_of(s: Scanner, type_: Any, start: int) -> np.ndarray[Any, Any]:
    """Consumes the elements of an array whose type was read at `start`.

    Raises:
        ParseError: When the type is not a static tensor type or the elements do not fit.
    """
    if not isinstance(type_, TensorType) or not type_.is_static or type_.dtype is None:
        raise s.error(f"an array needs an element type and integer sizes, not {type_}", at=start)
    return scan_elements(s, type_.dtype, tuple(int(str(dim)) for dim in type_.shape or ()))


def _scan_dict(s: Scanner, types: TypeScanner) -> dict[str, Any]:
    s.expect("{")
    items: dict[str, Any] = {}
    while not s.take("}"):
        if items:
            s.expect(",")
        key = s.string()
        s.expect(":")
        items[key] = scan_value(s, types)
    return items


def _scan_blob(s: Scanner) -> Blob:
    s.word()
    kind = s.string()
    data = s.blob()
    if data is None:
        raise s.error(f'expected the bytes of a blob, `x"…"`, found {s.found()}')
    return Blob(kind, data)
