"""Emitters of signal operators."""

from __future__ import annotations

from typing import Any

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter
from regraft.ir.graph import Node
from regraft.ir.ops import signal as ops


def _flags(e: EmitContext) -> dict[str, Any]:
    return {name: int(e.node.attrs[name]) for name in ("inverse", "onesided")}


def _dft_17(e: EmitContext) -> None:
    inputs = [e.name(e.node.inputs[0]), e.param("length") if _has_length(e) else ""]
    e.emit("DFT", inputs if inputs[1] else inputs[:1], axis=e.node.attrs["axis"], **_flags(e))


def _dft_20(e: EmitContext) -> None:
    length = e.param("length") if _has_length(e) else ""
    e.emit("DFT", [e.name(e.node.inputs[0]), length, e.param("axis")], **_flags(e))


def _has_length(e: EmitContext) -> bool:
    return e.node.attrs["length"] is not None or e.node.inputs[1] is not None


def _dft_min(node: Node) -> int:
    """Before opset 20 the axis was an attribute, counted from the front."""
    axis = node.attrs["axis"]
    return 20 if axis is None or axis < 0 else 17


def _stft(e: EmitContext) -> None:
    has_length = e.node.attrs["frame_length"] is not None or e.node.inputs[3] is not None
    names = [
        e.name(e.node.inputs[0]),
        e.param("frame_step"),
        e.name(e.node.inputs[2]),
        e.param("frame_length") if has_length else "",
    ]
    while not names[-1]:
        names.pop()
    e.emit("STFT", names, onesided=int(e.node.attrs["onesided"]))


def _window(op_type: str) -> Emitter:
    def run(e: EmitContext) -> None:
        attrs = e.node.attrs
        e.emit(
            op_type, [e.param("size")],
            periodic=int(attrs["periodic"]), output_datatype=attrs["dtype"],
        )  # fmt: skip

    return run


def _mel(e: EmitContext) -> None:
    names = [e.param(name) for name in ("num_mel_bins", "dft_length", "sample_rate")]
    names += [e.name(value) for value in e.node.inputs[3:5]]
    e.emit("MelWeightMatrix", names, output_datatype=e.node.attrs["dtype"])


EMITS: tuple[Emit, ...] = (
    Emit(
        ops.dft,
        {17: _dft_17, 20: _dft_20},
        min_opset=_dft_min,
    ),
    Emit(ops.stft, {17: _stft}),
    Emit(ops.hann_window, {17: _window("HannWindow")}),
    Emit(ops.hamming_window, {17: _window("HammingWindow")}),
    Emit(ops.blackman_window, {17: _window("BlackmanWindow")}),
    Emit(ops.mel_weight_matrix, {17: _mel}),
)
