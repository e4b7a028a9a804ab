"""The least and the largest value of a symbolic size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.dim_atoms import DimOp, Symbol

if TYPE_CHECKING:
    from regraft.ir.dim_algebra import DimLike


def bounds(value: DimLike) -> tuple[int | None, int | None]:
    """Returns (smallest, largest) values over all bindings; None where unbounded or unknown."""
    if isinstance(value, int):
        return value, value
    lo: int | None = 0
    hi: int | None = 0
    for mono, coef in value.terms:
        mlo: int | None = 1
        mhi: int | None = 1
        for atom, power in mono:
            alo, ahi = (atom.lo, atom.hi) if isinstance(atom, Symbol) else _op_bounds(atom)
            if alo is None or alo < 0 or mlo is None or mlo < 0:
                mlo, mhi = (alo, ahi) if len(mono) == 1 and power == 1 else (None, None)
                continue
            mlo = mlo * alo**power
            mhi = None if mhi is None or ahi is None else mhi * ahi**power
        tlo, thi = (mlo, mhi) if coef > 0 else (mhi, mlo)
        lo = None if lo is None or tlo is None else lo + coef * tlo
        hi = None if hi is None or thi is None else hi + coef * thi
    return lo, hi


def _op_bounds(op: DimOp) -> tuple[int | None, int | None]:
    (alo, ahi), (blo, bhi) = bounds(op.args[0]), bounds(op.args[1])
    if op.kind in ("min", "max"):
        pairs = [bounds(arg) for arg in op.args]
        los = [lo for lo, _ in pairs if lo is not None]
        his = [hi for _, hi in pairs if hi is not None]
        if op.kind == "max":
            return max(los, default=None), max(his) if len(his) == len(pairs) else None
        return min(los) if len(los) == len(pairs) else None, min(his, default=None)
    if op.kind == "mod":
        return (
            (0, None if bhi is None else bhi - 1) if blo is not None and blo > 0 else (None, None)
        )
    if blo is None or blo <= 0 or alo is None or alo < 0:
        if blo is not None and blo == bhi and blo > 0:  # a constant divisor keeps the order
            return (
                None if alo is None else alo // blo,
                None if ahi is None else ahi // blo,
            )
        return None, None
    if op.kind == "exactdiv":  # what divides without rest is no smaller than the next whole number
        return (-(-alo // bhi) if bhi else min(alo, 1)), (None if ahi is None else ahi // blo)
    return (alo // bhi if bhi else 0), (None if ahi is None else ahi // blo)
