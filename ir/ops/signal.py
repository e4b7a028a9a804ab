"""Signal processing: dft, stft, window functions, mel_weight_matrix; complex is `[..., 2]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, dim_max
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]


def _size(node: Node, name: str) -> DimLike | None:
    """Returns the static value of a scalar parameter; one element of rank 1 counts as a scalar."""
    value = node.static(name)
    size: DimLike | None = value[0] if isinstance(value, tuple) else value
    return size


def _int(c: EvalContext, name: str, operand: Array | None) -> int | None:
    value = c.param(name, operand)
    return None if value is None else int(value[0] if isinstance(value, tuple) else value)


def _dft_axis(node: Node, rank: int) -> int | None:
    axis = _size(node, "axis")
    if not isinstance(axis, int):
        return None
    if not -rank <= axis < rank or axis % rank == rank - 1:
        raise node.error(f"axis {axis} is no signal axis of rank {rank}")
    return axis % rank


def _infer_dft(node: Node) -> TensorType:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return TensorType(None if x is None else x.dtype, None)
    axis = _dft_axis(node, len(x.shape))
    real = node.attrs["inverse"] and node.attrs["onesided"]
    if axis is None:
        shape = [node.fresh_dim(0, i) for i in range(len(x.shape) - 1)]
    else:
        shape = list(x.shape[:-1])
        length = _size(node, "length")
        if length is None and node.inputs[1] is not None:
            shape[axis] = node.fresh_dim(0, axis)
        else:
            if length is None:
                length = (shape[axis] - 1) * 2 if real else shape[axis]
            half = node.attrs["onesided"] and not real
            shape[axis] = length // 2 + 1 if half else length
    return TensorType(x.dtype, (*shape, 1 if real else 2))


def _dft_axes(node: Node) -> str | None:
    x = node.inputs[0]
    axis = None if x is None or x.rank is None else _dft_axis(node, x.rank)
    if x is None or x.rank is None or axis is None:
        return None
    labels = [f"a{i}" for i in range(x.rank - 1)]
    source, target = labels.copy(), labels.copy()
    source[axis], target[axis] = "n!", "m!"
    return f"{' '.join(source)} c! -> {' '.join(target)} d!"


def _complex(x: Array) -> Array:
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _pairs(x: Array) -> Array:
    return np.stack((x.real, x.imag), axis=-1)


def _eval_dft(c: EvalContext, x: Array, length: Array | None, axis: Array | None) -> Array:
    at = _int(c, "axis", axis)
    at = (x.ndim - 2 if at is None else at) % x.ndim
    n = _int(c, "length", length)
    signal = _complex(x)
    inverse, onesided = c.attrs["inverse"], c.attrs["onesided"]
    if inverse and onesided:
        return np.fft.irfft(signal, n, at)[..., None]
    if inverse:
        return _pairs(np.fft.ifft(signal, n, at))
    spectrum = np.fft.fft(signal, n, at)
    if onesided:
        spectrum = np.take(spectrum, range(spectrum.shape[at] // 2 + 1), at)
    return _pairs(spectrum)


dft = OpSpec(
    name="dft",
    source="ONNX DFT-20",
    operands=(
        Operand("x"),
        Operand("length", optional=True, either=AttrKind.DIM),
        Operand("axis", optional=True, either=AttrKind.INT),
    ),
    attrs=(Attr("inverse", AttrKind.BOOL, False), Attr("onesided", AttrKind.BOOL, False)),
    axes=_dft_axes,
    infer=_infer_dft,
    eval=_eval_dft,
)


def _frame_length(node: Node, signal: Value, window: Value | None) -> DimLike | None:
    length = _size(node, "frame_length")
    if length is not None:
        return length
    if window is not None and window.shape is not None:
        return window.shape[0]
    if window is None and node.operand("frame_length") is None and signal.shape is not None:
        return signal.shape[1]
    return None


def _infer_stft(node: Node) -> TensorType:
    signal, _, window, _ = node.inputs
    if signal is None:
        raise node.error("operand `signal` is missing")
    if signal.shape is None:
        return TensorType(signal.dtype, None)
    if len(signal.shape) != 3:
        raise node.error(f"signal has rank {len(signal.shape)}, expected 3 (batch, time, complex)")
    B, L, _ = signal.shape
    length, step = _frame_length(node, signal, window), _size(node, "frame_step")
    if length is None:
        return TensorType(signal.dtype, (B, node.fresh_dim(0, 1), node.fresh_dim(0, 2), 2))
    frames = node.fresh_dim(0, 1) if step is None else (L - length) // step + 1
    bins = length // 2 + 1 if node.attrs["onesided"] else length
    return TensorType(signal.dtype, (B, frames, bins, 2))


def _eval_stft(
    c: EvalContext, signal: Array, step: Array | None, window: Array | None, length: Array | None
) -> Array:
    n = _int(c, "frame_length", length)
    if n is None:
        n = signal.shape[1] if window is None else window.shape[0]
    hop = _int(c, "frame_step", step)
    frames = np.lib.stride_tricks.sliding_window_view(_complex(signal), n, axis=1)[:, ::hop]
    spectrum = np.fft.fft(frames if window is None else frames * window, axis=-1)
    return _pairs(spectrum[..., : n // 2 + 1] if c.attrs["onesided"] else spectrum)


stft = OpSpec(
    name="stft",
    source="ONNX STFT-17",
    operands=(
        Operand("signal"),
        Operand("frame_step", either=AttrKind.DIM),
        Operand("window", optional=True),
        Operand("frame_length", optional=True, either=AttrKind.DIM),
    ),
    attrs=(Attr("onesided", AttrKind.BOOL, True),),
    axes="b n! c!, ., w!, . -> b f! m! d!",
    infer=_infer_stft,
    eval=_eval_stft,
)


def _infer_window(node: Node) -> TensorType:
    size = _size(node, "size")
    return TensorType(node.attrs["dtype"], (node.fresh_dim(0, 0) if size is None else size,))


def _window(name: str, source: str, value: Callable[[Array], Array]) -> OpSpec:
    """Returns a window operator; `value` maps angles in [0, 2 pi] over the window to weights."""

    def evaluate(c: EvalContext, size: Array | None) -> Array:
        n = _int(c, "size", size) or 0
        steps = n if c.attrs["periodic"] else n - 1
        return value(np.arange(n) * (2 * np.pi / steps if steps else 0.0))

    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("size", either=AttrKind.DIM),),
        attrs=(
            Attr("dtype", AttrKind.DTYPE, DType.F32),
            Attr("periodic", AttrKind.BOOL, True),
        ),
        infer=_infer_window,
        eval=evaluate,
    )


hann_window = _window("hann_window", "ONNX HannWindow-17", lambda a: 0.5 - 0.5 * np.cos(a))
hamming_window = _window(
    "hamming_window", "ONNX HammingWindow-17", lambda a: (25 - 21 * np.cos(a)) / 46
)
blackman_window = _window(
    "blackman_window",
    "ONNX BlackmanWindow-17",
    lambda a: 0.42 - 0.5 * np.cos(a) + 0.08 * np.cos(2 * a),
)


def _infer_mel(node: Node) -> TensorType:
    length, bands = _size(node, "dft_length"), _size(node, "num_mel_bins")
    rows = node.fresh_dim(0, 0) if length is None else dim_max(0, length) // 2 + 1
    return TensorType(node.attrs["dtype"], (rows, node.fresh_dim(0, 1) if bands is None else bands))


def _eval_mel(
    c: EvalContext,
    num_mel_bins: Array | None, dft_length: Array | None, sample_rate: Array | None,
    lower: Array, upper: Array,
) -> Array:  # fmt: skip
    bands, length = (
        _int(c, "num_mel_bins", num_mel_bins) or 0,
        _int(c, "dft_length", dft_length) or 0,
    )
    rate = _int(c, "sample_rate", sample_rate)
    low, high = (
        2595 * np.log10(1 + edge.astype(np.float64).reshape(()) / 700) for edge in (lower, upper)
    )
    # ONNX divides by the number of edges, not of steps between them
    edges = low + np.arange(bands + 2) * ((high - low) / (bands + 2))
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.floor((length + 1) * hertz / rate)
    left, center, right = bins[:-2], bins[1:-1], bins[2:]
    j = np.arange(length // 2 + 1)[:, None]
    rising = np.where(j >= left, (j - left) / np.maximum(center - left, 1), 0)
    falling = np.where(j < right, (right - j) / np.maximum(right - center, 1), 0)
    return np.where(j == center, 1, np.where(j < center, rising, falling))


mel_weight_matrix = OpSpec(
    name="mel_weight_matrix",
    source="ONNX MelWeightMatrix-17",
    operands=(
        Operand("num_mel_bins", either=AttrKind.DIM),
        Operand("dft_length", either=AttrKind.DIM),
        Operand("sample_rate", either=AttrKind.DIM),
        Operand("lower_edge_hertz"),
        Operand("upper_edge_hertz"),
    ),
    attrs=(Attr("dtype", AttrKind.DTYPE, DType.F32),),
    infer=_infer_mel,
    eval=_eval_mel,
)

OPS: tuple[OpSpec, ...] = (
    dft,
    stft,
    hann_window,
    hamming_window,
    blackman_window,
    mel_weight_matrix,
)
