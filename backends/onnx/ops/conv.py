"""Emitters of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.ir.errors import UnsupportedError
from regraft.ir.ops import causal_conv
from regraft.ir.ops import conv as ops
from regraft.ir.ops import deform_conv as deform

_LAST = np.iinfo(np.int64).max


def window_attrs(e: EmitContext) -> dict[str, Any]:
    """Returns the ONNX attributes of the windows: pads or auto_pad, strides, dilations."""
    attrs = e.node.attrs
    values = {"strides": attrs["strides"], "dilations": attrs["dilations"]}
    if attrs["auto_pad"] == "none":
        return values | {"pads": attrs["pads"]}
    return values | {"auto_pad": attrs["auto_pad"].upper()}


def _emit_conv(e: EmitContext) -> None:
    e.emit("Conv", e.inputs, group=e.node.attrs["groups"], **window_attrs(e))


def _emit_conv_transpose(e: EmitContext) -> None:
    attrs = e.node.attrs
    values = window_attrs(e) | {"group": attrs["groups"]}
    if any(attrs["output_padding"]):
        values["output_padding"] = attrs["output_padding"]
    if attrs["output_shape"]:
        values["output_shape"] = attrs["output_shape"]
        values.pop("pads", None)
    e.emit("ConvTranspose", e.inputs, **values)


def _emit_deform_conv(e: EmitContext) -> None:
    values = window_attrs(e)
    groups, sharing = e.node.attrs["groups"], e.node.attrs["offset_groups"]
    e.emit("DeformConv", e.inputs, group=groups, offset_group=sharing, **values)


def _emit_causal_conv(e: EmitContext) -> None:
    """Emits concat, conv, activation and slice: the native operator is younger than opset 26."""
    x, weight, bias, past = (e.name(value) for value in e.node.inputs)
    shape = None if e.node.inputs[1] is None else e.node.inputs[1].shape
    channels, taps = (None, None) if shape is None else (shape[0], shape[2])
    if not isinstance(channels, int) or not isinstance(taps, int):
        raise UnsupportedError(
            f"`{e.name(e.node.output)}`: causal_conv is emitted for weights of known shape only"
        )
    if past:
        padded = e.op("Concat", past, x, axis=2)
    else:
        padded = e.op("Pad", x, e.ints((0, 0, taps - 1, 0, 0, 0)))
    silu = e.node.attrs["activation"] == "silu"
    out, present = e.node.outputs
    target = e.temp("conv") if silu else e.name(out)
    inputs = [padded, weight, bias] if bias else [padded, weight]
    e.emit("Conv", inputs, [target], group=channels)
    if silu:
        e.emit("Mul", [target, e.op("Sigmoid", target)], [e.name(out)])
    if present.num_uses:
        start = _LAST if taps == 1 else 1 - taps  # one tap keeps no state
        bounds = [e.ints((start,)), e.ints((_LAST,)), e.ints((2,))]
        e.emit("Slice", [padded, *bounds], [e.name(present)])


def _emit_standard_causal_conv(e: EmitContext) -> None:
    """Emits the operator of opset 27, which only files of standard operators ask for."""
    weight = e.node.inputs[1]
    if e.profile != "onnx" or weight is None or weight.shape is None or weight.shape[2] == 1:
        _emit_causal_conv(e)
        return
    names = [e.name(value) if value.num_uses else e.temp("unused") for value in e.node.outputs]
    e.emit("CausalConvWithState", e.inputs, names, activation=e.node.attrs["activation"])


EMITS: tuple[Emit, ...] = (
    Emit(ops.conv, {13: _emit_conv}),
    Emit(ops.conv_transpose, {13: _emit_conv_transpose}),
    Emit(causal_conv.causal_conv, {13: _emit_causal_conv, 27: _emit_standard_causal_conv}),
    Emit(deform.deform_conv, {19: _emit_deform_conv}),
)
