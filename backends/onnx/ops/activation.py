"""Emitters of activation functions; older opsets get the same meaning in simpler operators."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import numpy as np

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.ops import activation as ops
from regraft.ir.types import DType


def _const(e: EmitContext, value: float) -> str:
    """Returns a scalar constant of the result's element type."""
    dtype = e.node.output.dtype
    return e.const(value, np.float32 if dtype is None else dtype.numpy)


def _gelu(e: EmitContext) -> None:
    e.emit("Gelu", e.inputs, approximate="tanh" if e.node.attrs["tanh"] else "none")


def _has_contrib_kernel(e: EmitContext) -> bool:
    """Returns whether the target runs com.microsoft activations on this element type."""
    return e.profile != "onnx" and e.node.output.dtype is DType.F32


def _gelu_13(e: EmitContext) -> None:
    (x,) = e.inputs
    if _has_contrib_kernel(e):
        e.emit("FastGelu" if e.node.attrs["tanh"] else "Gelu", [x], domain="com.microsoft")
        return
    if e.node.attrs["tanh"]:
        cubed = e.op("Mul", e.op("Mul", x, x), x)
        inner = e.op("Add", x, e.op("Mul", cubed, _const(e, 0.044715)))
        gate = e.op("Tanh", e.op("Mul", inner, _const(e, sqrt(2 / pi))))
    else:
        gate = e.op("Erf", e.op("Div", x, _const(e, sqrt(2))))
    # x * (1 + gate) * 0.5 is the order that runtimes recognize
    product = e.op("Mul", x, e.op("Add", gate, _const(e, 1)))
    e.emit("Mul", [product, _const(e, 0.5)])


def _hard_swish_13(e: EmitContext) -> None:
    (x,) = e.inputs
    e.emit("Mul", [x, e.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)])


def _swish(e: EmitContext) -> None:
    # also where Swish-24 exists: ONNX Runtime has no kernel for it, but one for QuickGelu
    (x,) = e.inputs
    alpha = e.node.attrs["alpha"]
    if _has_contrib_kernel(e):
        e.emit("QuickGelu", [x], domain="com.microsoft", alpha=alpha)
        return
    scaled = x if alpha == 1 else e.op("Mul", x, _const(e, alpha))
    e.emit("Mul", [x, e.op("Sigmoid", scaled)])


def _mish_13(e: EmitContext) -> None:
    (x,) = e.inputs
    e.emit("Mul", [x, e.op("Tanh", e.op("Softplus", x))])


def _celu(e: EmitContext) -> None:
    alpha = e.node.attrs["alpha"]
    if e.node.output.dtype is DType.F32:
        e.emit("Celu", e.inputs, alpha=alpha)
        return
    # Celu of other types came with opset 28: celu(x) = alpha * elu(x / alpha)
    scale = _const(e, alpha)
    e.emit("Mul", [e.op("Elu", e.op("Div", e.inputs[0], scale), alpha=1.0), scale])


def _clip(e: EmitContext) -> None:
    names = [e.name(e.node.inputs[0]), _bound(e, "min"), _bound(e, "max")]
    while not names[-1]:
        names.pop()
    e.emit("Clip", names)


def _bound(e: EmitContext, name: str) -> str:
    static: Any = e.node.attrs[name]
    return e.name(e.node.operand(name)) if static is None else _const(e, static)


EMITS: tuple[Emit, ...] = (
    Emit(ops.relu, {13: direct("Relu")}),
    Emit(ops.leaky_relu, {13: direct("LeakyRelu", "alpha")}),
    Emit(ops.prelu, {13: direct("PRelu")}),
    Emit(ops.thresholded_relu, {13: direct("ThresholdedRelu", "alpha")}),
    Emit(ops.elu, {13: direct("Elu", "alpha")}),
    Emit(ops.selu, {13: direct("Selu", "alpha", "gamma")}),
    Emit(ops.celu, {13: _celu}),
    Emit(ops.sigmoid, {13: direct("Sigmoid")}),
    Emit(ops.hard_sigmoid, {13: direct("HardSigmoid", "alpha", "beta")}),
    Emit(ops.hard_swish, {13: _hard_swish_13, 14: direct("HardSwish")}),
    Emit(ops.swish, {13: _swish}),
    Emit(ops.mish, {13: _mish_13, 18: direct("Mish")}),
    Emit(ops.gelu, {13: _gelu_13, 20: _gelu}),
    Emit(ops.softplus, {13: direct("Softplus")}),
    Emit(ops.softsign, {13: direct("Softsign")}),
    Emit(ops.shrink, {13: direct("Shrink", "lambd", "bias")}),
    Emit(ops.clip, {13: _clip}),
)
