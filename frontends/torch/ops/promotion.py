"""Element types that PyTorch computes in: promotion of tensors and numbers.

A tensor with axes decides; a 0-d tensor, and after it a Python number, only raises the category
(bool < integer < float < complex).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.torch.call import CallImport
from regraft.ir.dims import Dim
from regraft.ir.graph import Value
from regraft.ir.types import DType

_DEFAULT_FLOAT = DType.F32
_HALF = frozenset({DType.F16, DType.BF16})


def _category(dtype: DType) -> int:
    if dtype is DType.BOOL:
        return 0
    if dtype.is_integer:
        return 1
    return 2 if dtype.is_float else 3


def promote(a: DType, b: DType) -> DType:
    """Returns the element type that holds both, as `torch.promote_types` does."""
    if a is b:
        return a
    low, high = sorted((a, b), key=_category)
    if _category(low) < _category(high):
        if high is DType.C64 and low is DType.F64:
            return DType.C128
        return high
    if a.is_integer:
        return _promote_integers(a, b)
    if a in _HALF and b in _HALF:
        return DType.F32
    return a if a.bits > b.bits else b


def _promote_integers(a: DType, b: DType) -> DType:
    if a.value[0] == b.value[0]:
        return a if a.bits > b.bits else b
    signed, unsigned = (a, b) if a.value[0] == "i" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    return {8: DType.I16, 16: DType.I32}.get(unsigned.bits, DType.I64)


def number_dtype(number: Any) -> DType:
    """Returns the element type that stands for a Python number in promotion."""
    if isinstance(number, bool):
        return DType.BOOL
    if isinstance(number, int | Dim):
        return DType.I64
    return DType.C64 if isinstance(number, complex) else _DEFAULT_FLOAT


def _combine(high: DType | None, low: DType | None) -> DType | None:
    if high is None or low is None:
        return low if high is None else high
    if _category(low) <= _category(high):
        return high
    if high.is_float and low.is_complex:
        return DType.C128 if high is DType.F64 else DType.C64
    return promote(high, low)


def result_dtype(items: Sequence[Any]) -> DType:
    """Returns the element type in which an operator computes on tensors and numbers."""
    groups: list[DType | None] = [None, None, None]  # with axes, 0-d, numbers
    for item in items:
        if isinstance(item, Value):
            dtype, group = item.dtype or _DEFAULT_FLOAT, 0 if item.rank else 1
        else:
            dtype, group = number_dtype(item), 2
        known = groups[group]
        groups[group] = dtype if known is None else promote(known, dtype)
    found = _combine(groups[0], _combine(groups[1], groups[2]))
    if found is None:
        raise AssertionError("an operator has operands")
    return found


def promoted(c: CallImport, *names: str) -> tuple[Value, ...]:
    """Returns arguments, tensors or numbers, in the element type they are computed in."""
    dtype = result_dtype([c.args[name] for name in names])
    return tuple(c.operand(name, dtype) for name in names)
