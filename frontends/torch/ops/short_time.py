"""Importers of short-time Fourier transforms: frames of a signal, and their sum back."""

from __future__ import annotations

from math import sqrt

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.complex_numbers import is_complex, marked, pair_of
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import moved, shape_of
from regraft.frontends.torch.ops.slicing import joined, sliced
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic
from regraft.ir.ops.conv import conv_transpose
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.signal import dft, stft
from regraft.ir.types import DType


def _window(c: CallImport, dtype: DType) -> Value:
    """Returns the window in the middle of a frame, zeros around it; ones without a window."""
    size, window = c.attr("n_fft"), c.optional("window")
    length = c.attr("win_length") or size
    if window is None:
        window = c.b.constant(np.ones(length), dtype)
    window = c.cast(window, dtype)
    left = (size - length) // 2
    ends = [c.b.constant(np.zeros(n), dtype) for n in (left, size - length - left)]
    return window if length == size else joined(c, [ends[0], window, ends[1]], 0)


def _hop(c: CallImport) -> int:
    hop = c.attr("hop_length")
    return int(c.attr("n_fft")) // 4 if hop is None else int(hop)


def _stft(c: CallImport) -> Value:
    """The spectrum of every frame, `[B, bins, frames]`; PyTorch has padded the signal."""
    x = c.value("self")
    if is_complex(x) or not c.attr("return_complex") or c.attr("align_to_window"):
        raise UnsupportedCallError("of complex numbers, as pairs, or aligned to the window")
    one_sided = c.attr("onesided")
    whole = len(shape_of(x)) == 2
    signal = x if whole else c.b.op(unsqueeze, x, axes=(0,))
    dtype = x.dtype or DType.F32
    out = c.b.op(
        stft, c.b.op(unsqueeze, signal, axes=(2,)), None, _window(c, dtype), None,
        frame_step=_hop(c), frame_length=c.attr("n_fft"),
        onesided=True if one_sided is None else bool(one_sided),
    )  # fmt: skip
    out = moved(c, out, (0, 2, 1, 3))
    if c.attr("normalized"):
        out = c.b.op(arithmetic.mul, out, c.number(1 / sqrt(c.attr("n_fft")), dtype))
    return marked(out if whole else c.b.op(squeeze, out, axes=(0,)))


def _istft(c: CallImport) -> Value:
    """Frames back in time, added where they overlap, over the sum of the squared windows."""
    if c.attr("return_complex") or c.attr("onesided") is False:
        raise UnsupportedCallError("a complex signal")
    pair = pair_of(c, c.value("self"))
    whole = len(shape_of(pair)) == 4
    pair = pair if whole else c.b.op(unsqueeze, pair, axes=(0,))
    size, dtype = int(c.attr("n_fft")), pair.dtype or DType.F32
    frames = c.b.op(dft, moved(c, pair, (0, 2, 1, 3)), length=size, axis=2, inverse=True,
                    onesided=True)  # fmt: skip
    frames = c.b.op(squeeze, frames, axes=(3,))  # [B, frames, n]
    window = _window(c, dtype)
    frames = c.b.op(arithmetic.mul, frames, window)
    if c.attr("normalized"):
        frames = c.b.op(arithmetic.mul, frames, c.number(sqrt(size), dtype))
    count = shape_of(frames)[1]
    square = c.b.op(unsqueeze, c.b.op(arithmetic.mul, window, window), axes=(0, 2))
    total = _overlapped(c, moved(c, frames, (0, 2, 1)), size, dtype)
    weight = _overlapped(c, expanded(c, square, (1, size, count)), size, dtype)
    start = size // 2 if c.attr("center") else 0
    full = (count - 1) * _hop(c) + size
    length = c.attr("length")
    end = full - start if length is None else start + length
    if length is not None and not (isinstance(full, int) and start + length <= full):
        raise UnsupportedCallError("a length beyond the last frame")
    total, weight = (sliced(c, item, 1, start, end) for item in (total, weight))
    out = c.b.op(arithmetic.div, total, weight)
    return out if whole else c.b.op(squeeze, out, axes=(0,))


def _overlapped(c: CallImport, frames: Value, size: int, dtype: DType) -> Value:
    """Returns the sum over frames `[B, n, frames]`, each one hop behind the last, `[B, time]`."""
    places = c.b.constant(np.eye(size)[:, None], dtype, name="places")
    out = c.b.op(
        conv_transpose, frames, places, strides=(_hop(c),), dilations=(1,),
        pads=(0, 0), output_padding=(0,),
    )  # fmt: skip
    return c.b.op(squeeze, out, axes=(1,))


IMPORTS: tuple[Import, ...] = (
    row(_stft, "aten.stft.default"),
    row(_istft, "aten.istft.default"),
)
