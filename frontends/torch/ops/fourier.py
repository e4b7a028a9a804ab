"""Importers of Fourier transforms, one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.complex_numbers import is_complex, marked, pair_of, rank_of
from regraft.frontends.torch.ops.shape import shape_of
from regraft.frontends.torch.ops.slicing import rolled
from regraft.ir.dims import DimLike, dim_max, floordiv, known_equal
from regraft.ir.graph import Value
from regraft.ir.ops.arithmetic import mul
from regraft.ir.ops.repeating import pad
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.signal import dft
from regraft.ir.ops.slicing import slice_
from regraft.ir.types import DType


def _transform(
    c: CallImport, x: Value, axis: int, length: DimLike | None, *, inverse: bool, onesided: bool
) -> Value:
    """Returns one transform of `x [..., n, 1 or 2]`, scaled as the argument `norm` says."""
    if length is None:
        size = shape_of(x)[axis]
        length = (size - 1) * 2 if inverse and onesided else size
    elif inverse and onesided:
        x = _half(c, x, axis, length)
    out = c.b.op(dft, x, length=length, axis=axis, inverse=inverse, onesided=onesided)
    norm = c.attr("norm")
    if norm in (None, "backward"):
        return out
    if not isinstance(length, int):
        raise UnsupportedCallError(f"norm `{norm}` of an axis of symbolic size")
    factor = 1 / sqrt(length) if norm == "ortho" else 1 / length
    if inverse:  # the inverse is divided by the length already
        factor *= length if norm == "ortho" else length * length
    return c.b.op(mul, out, c.number(factor, x.dtype or DType.F32))


def _half(c: CallImport, x: Value, axis: int, length: DimLike) -> Value:
    """Returns the half spectrum that a signal of some length has: cut, or zero where it is short.

    Runtimes take an inverse transform of one that is too short for another signal.
    """
    size, wanted = shape_of(x)[axis], floordiv(length, 2) + 1
    missing = dim_max(0, wanted - size)
    if not known_equal(missing, 0):
        x = c.b.op(pad, x, pads=(0, missing), axes=(axis,))
    if known_equal(shape_of(x)[axis], wanted):
        return x
    return c.b.op(slice_, x, starts=(0,), ends=(wanted,), axes=(axis,))


def _axes(c: CallImport, rank: int) -> tuple[list[int], list[DimLike | None]]:
    """Returns the transformed axes and the lengths that the caller wants."""
    sizes = c.args.get("s")
    sizes = None if sizes is None else list(sizes)
    dims = c.args.get("dim")
    if dims is None:
        dims = range(rank) if sizes is None else range(rank - len(sizes), rank)
    axes = [axis % rank for axis in dims]
    return axes, [None] * len(axes) if sizes is None else sizes


def _one_axis(*, inverse: bool, onesided: bool) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        rank = rank_of(x)
        return _chained(c, x, [c.axis("dim", rank)], [c.attr("n")], inverse=inverse,
                        onesided=onesided)  # fmt: skip

    return run


def _many_axes(*, inverse: bool, onesided: bool) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        rank = rank_of(x)
        axes, lengths = _axes(c, rank)
        return _chained(c, x, axes, lengths, inverse=inverse, onesided=onesided)

    return run


def _chained(
    c: CallImport,
    x: Value,
    axes: Sequence[int],
    lengths: Sequence[DimLike | None],
    *,
    inverse: bool,
    onesided: bool,
) -> Value:
    """Transforms axis by axis; of a real signal the last axis is the half that is kept."""
    whole = list(zip(axes, lengths, strict=True))
    if not inverse:
        # a real signal has one part, which the transform takes as it is
        x = pair_of(c, x) if is_complex(x) else _single_part(c, x)
        for axis, length in reversed(whole):
            x = _transform(
                c, x, axis, length, inverse=False, onesided=onesided and axis == axes[-1]
            )
        return marked(x)
    x = pair_of(c, x)
    for axis, length in whole[: -1 if onesided else None]:
        x = _transform(c, x, axis, length, inverse=True, onesided=False)
    if not onesided:
        return marked(x)
    axis, length = whole[-1]
    x = _transform(c, x, axis, length, inverse=True, onesided=True)
    return c.b.op(squeeze, x, axes=(len(shape_of(x)) - 1,))


def _single_part(c: CallImport, x: Value) -> Value:
    real = c.cast(x, DType.F64 if c.dtype in (DType.F64, DType.C128) else DType.F32)
    return c.b.op(unsqueeze, real, axes=(len(shape_of(real)),))


def _shift(*, inverse: bool) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        pair = pair_of(c, x) if is_complex(x) else x
        rank = rank_of(x)
        dims = c.attr("dim")
        for axis in range(rank) if dims is None else (axis % rank for axis in dims):
            half = floordiv(shape_of(pair)[axis], 2)
            pair = rolled(c, pair, axis, shape_of(pair)[axis] - half if inverse else half)
        return marked(pair) if is_complex(x) and not is_complex(pair) else pair

    return run


def _names(form: str) -> tuple[str, ...]:
    return (f"aten.fft_{form}2.default", f"aten.fft_{form}n.default")


_ONE = {
    "aten.fft_fft.default": _one_axis(inverse=False, onesided=False),
    "aten.fft_ifft.default": _one_axis(inverse=True, onesided=False),
    "aten.fft_rfft.default": _one_axis(inverse=False, onesided=True),
    "aten.fft_irfft.default": _one_axis(inverse=True, onesided=True),
    **dict.fromkeys(_names("fft"), _many_axes(inverse=False, onesided=False)),
    **dict.fromkeys(_names("ifft"), _many_axes(inverse=True, onesided=False)),
    **dict.fromkeys(_names("rfft"), _many_axes(inverse=False, onesided=True)),
    **dict.fromkeys(_names("irfft"), _many_axes(inverse=True, onesided=True)),
    "aten.fft_fftshift.default": _shift(inverse=False),
    "aten.fft_ifftshift.default": _shift(inverse=True),
}

IMPORTS: tuple[Import, ...] = tuple(row(importer, name) for name, importer in _ONE.items())
