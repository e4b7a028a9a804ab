"""Importers of activation functions, those of com.microsoft included."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.ir.graph import Value
from regraft.ir.ops import activation as ops
from regraft.ir.ops import arithmetic

_F32_MAX = float(np.finfo(np.float32).max)


def _gelu(item: NodeImport) -> Value:
    approximate = item.attr("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise item.error(f"approximate `{approximate}`: expected `none` or `tanh`")
    return item.b.op(ops.gelu, item.require(0), tanh=approximate == "tanh")


def _gelu_of_sum(*, tanh: bool) -> Any:
    """Returns an importer of gelu(x + bias), the bias optional."""

    def run(item: NodeImport) -> Value:
        x, bias = item.require(0), item.input(1)
        if bias is not None:
            x = item.b.op(arithmetic.add, x, bias)
        return item.b.op(ops.gelu, x, tanh=tanh)

    return run


def _swiglu(item: NodeImport) -> Value:
    gate = item.b.op(ops.swish, item.require(0), alpha=item.attr("alpha", 1.0))
    return item.b.op(arithmetic.mul, gate, item.require(1))


def _quick_gelu(item: NodeImport) -> Value:
    return item.b.op(ops.swish, item.require(0), alpha=item.attr("alpha", 1.702))


def _clip_6(item: NodeImport) -> Value:
    # the absent bounds are finite: they clip infinities
    return item.b.op(
        ops.clip,
        item.require(0),
        min=item.attr("min", -_F32_MAX),
        max=item.attr("max", _F32_MAX),
    )


def _clip(item: NodeImport) -> Value:
    x = item.require(0)
    bounds: list[Value | None] = []
    attrs: dict[str, float] = {}
    for idx, name in ((1, "min"), (2, "max")):
        array = None if x.dtype is None else item.const(idx, max_bytes=8)
        if array is None or array.size != 1 or float(array.flat[0]) != array.flat[0]:
            bounds.append(item.input(idx))  # also an integer that no float holds
            continue
        bounds.append(None)
        attrs[name] = float(array.flat[0])
    return item.b.op(ops.clip, x, *bounds, **attrs)


IMPORTS: tuple[Import, ...] = (
    Import("Relu", {1: direct(ops.relu)}),
    Import("LeakyRelu", {1: direct(ops.leaky_relu, "alpha")}),
    Import("PRelu", {7: direct(ops.prelu)}),
    Import("ThresholdedRelu", {10: direct(ops.thresholded_relu, "alpha")}),
    Import("Elu", {1: direct(ops.elu, "alpha")}),
    Import("Selu", {6: direct(ops.selu, "alpha", "gamma")}),
    Import("Celu", {12: direct(ops.celu, "alpha")}),
    Import("Sigmoid", {1: direct(ops.sigmoid)}),
    Import("HardSigmoid", {1: direct(ops.hard_sigmoid, "alpha", "beta")}),
    Import("HardSwish", {14: direct(ops.hard_swish)}),
    Import("Swish", {24: direct(ops.swish, "alpha")}),
    Import("SwiGLU", {28: _swiglu}),
    Import("Mish", {18: direct(ops.mish)}),
    Import("Gelu", {20: _gelu}),
    Import("Softplus", {1: direct(ops.softplus)}),
    Import("Softsign", {1: direct(ops.softsign)}),
    Import("Shrink", {9: direct(ops.shrink, "lambd", "bias")}),
    Import("Clip", {6: _clip_6, 11: _clip}),
    Import("Gelu", {1: _gelu_of_sum(tanh=False)}, domain="com.microsoft"),
    Import("BiasGelu", {1: _gelu_of_sum(tanh=False)}, domain="com.microsoft"),
    Import("FastGelu", {1: _gelu_of_sum(tanh=True)}, domain="com.microsoft"),
    Import("QuickGelu", {1: _quick_gelu}, domain="com.microsoft"),
)
