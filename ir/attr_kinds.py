"""Which Python values an attribute of a kind may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.dims import Dim
from regraft.ir.opspec import AttrKind
from regraft.ir.types import DType, Type


def _is_dim(value: Any) -> bool:
    return type(value) is int or isinstance(value, Dim)


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is tuple and all(map(fits, value))


# Exact types: a numpy scalar or a bool in place of an int compares and prints otherwise.
_FITS: dict[AttrKind, Callable[[Any], bool]] = {
    AttrKind.INT: lambda value: type(value) is int,
    AttrKind.FLOAT: lambda value: type(value) is float,
    AttrKind.BOOL: lambda value: type(value) is bool,
    AttrKind.STR: lambda value: type(value) is str,
    AttrKind.INTS: _all(lambda value: type(value) is int),
    AttrKind.FLOATS: _all(lambda value: type(value) is float),
    AttrKind.STRS: _all(lambda value: type(value) is str),
    AttrKind.DIM: _is_dim,
    AttrKind.DIMS: _all(_is_dim),
    AttrKind.DTYPE: lambda value: isinstance(value, DType),
    AttrKind.ARRAY: lambda value: isinstance(value, np.ndarray),
    AttrKind.TYPE: lambda value: isinstance(value, Type),
    AttrKind.ANY: lambda value: True,
}


def fits_kind(value: Any, kind: AttrKind) -> bool:
    """Returns whether an attribute of `kind` may hold `value`."""
    return _FITS[kind](value)
