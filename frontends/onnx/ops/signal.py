"""Importers of signal operators."""

from __future__ import annotations

from typing import Any

from regraft.frontends.onnx.importer import Import, Importer, NodeImport
from regraft.frontends.onnx.types import DTYPES
from regraft.ir.graph import Value
from regraft.ir.ops import signal as ops
from regraft.ir.opspec import OpSpec

_FLOAT = 1  # TensorProto.FLOAT


def _scalar(item: NodeImport, idx: int) -> tuple[Value | None, Any]:
    """Splits an *either* scalar; exporters also write one element of rank 1."""
    value, static = item.either(idx)
    return value, static[0] if isinstance(static, tuple) else static


def _dft(item: NodeImport) -> Value:
    x = item.require(0)
    length, static_length = _scalar(item, 1)
    axis: Value | None = None
    static_axis: Any = int(item.attr("axis", 1))  # DFT-17
    if item.version >= 20:
        axis, static_axis = _scalar(item, 2)
        if axis is None and static_axis is None:
            static_axis = -2
    if isinstance(static_axis, int) and static_axis < 0 and x.rank is not None:
        static_axis += x.rank
    return item.b.op(
        ops.dft, x, length, axis, length=static_length, axis=static_axis,
        inverse=bool(item.attr("inverse", 0)), onesided=bool(item.attr("onesided", 0)),
    )  # fmt: skip


def _stft(item: NodeImport) -> Value:
    step, static_step = _scalar(item, 1)
    length, static_length = _scalar(item, 3)
    return item.b.op(
        ops.stft, item.require(0), step, item.input(2), length,
        frame_step=static_step, frame_length=static_length,
        onesided=bool(item.attr("onesided", 1)),
    )  # fmt: skip


def _window(spec: OpSpec) -> Importer:
    def run(item: NodeImport) -> Value:
        size, static_size = _scalar(item, 0)
        return item.b.op(
            spec, size, size=static_size, periodic=bool(item.attr("periodic", 1)),
            dtype=DTYPES[item.attr("output_datatype", _FLOAT)],
        )  # fmt: skip

    return run


def _mel(item: NodeImport) -> Value:
    pairs = [_scalar(item, i) for i in range(3)]
    names = ("num_mel_bins", "dft_length", "sample_rate")
    return item.b.op(
        ops.mel_weight_matrix, *(value for value, _ in pairs), item.require(3), item.require(4),
        dtype=DTYPES[item.attr("output_datatype", _FLOAT)],
        **{name: static for name, (_, static) in zip(names, pairs, strict=True)},
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("DFT", {17: _dft, 20: _dft}),
    Import("STFT", {17: _stft}),
    Import("HannWindow", {17: _window(ops.hann_window)}),
    Import("HammingWindow", {17: _window(ops.hamming_window)}),
    Import("BlackmanWindow", {17: _window(ops.blackman_window)}),
    Import("MelWeightMatrix", {17: _mel}),
)
