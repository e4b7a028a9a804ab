"""Emitters of pooling, unpooling and regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.backends.onnx.emitter import Emit, EmitContext, Emitter, direct
from regraft.backends.onnx.ops.conv import window_attrs
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops import pool as ops
from regraft.ir.ops import region, repeating, unpool


def _pool(op_type: str, *, dilated: int = 13, ceil: int = 13, **renamed: str) -> Emitter:
    """Returns an emitter of a pool; attributes younger than opset 13 only where they matter."""

    def run(e: EmitContext) -> None:
        attrs = e.node.attrs
        values: dict[str, Any] = {"kernel_shape": attrs["kernel"], **window_attrs(e)}
        # ONNX Runtime copies them to QLinearAveragePool, which has no such attribute
        if e.opset < dilated or (dilated > 13 and not _is_dilated(e.node)):
            del values["dilations"]
        if e.opset >= ceil:
            values["ceil_mode"] = attrs["ceil_mode"]
        values |= {name: attrs[ir] for name, ir in renamed.items()}
        e.emit(op_type, e.inputs, **values)

    return run


def _emit_max_pool(e: EmitContext) -> None:
    """Emits the pool; behind a Pad in a form that ONNX Runtime does not take the Pad into.

    It makes the pads of a Pad those of the pool, where they are -inf whatever the Pad had.
    """
    attrs = e.node.attrs
    values = {"kernel_shape": attrs["kernel"], **window_attrs(e), "ceil_mode": attrs["ceil_mode"]}
    outputs = [e.name(e.node.output)]
    if _is_behind_pad(e.node) and "pads" in values:
        if any(attrs["pads"]):
            outputs.append(e.temp("indices"))  # a pool with two results is left alone
        else:
            del values["pads"]
            values["auto_pad"] = "VALID"
    e.emit("MaxPool", e.inputs, outputs, **values)


def _is_behind_pad(node: Node) -> bool:
    made = None if node.inputs[0] is None else node.inputs[0].producer
    if made is None or made.op is not repeating.pad or made.attrs["mode"] != "constant":
        return False
    value = constant_of(made.inputs[2])
    return value is None or float(value.reshape(())) != -np.inf


def _is_dilated(node: Node) -> bool:
    return any(d != 1 for d in node.attrs["dilations"])


def _average_opset(node: Node) -> int:
    return 19 if _is_dilated(node) else 13


def _lp_opset(node: Node) -> int:
    return 18 if _is_dilated(node) or node.attrs["ceil_mode"] else 13


def _emit_global_lp(e: EmitContext) -> None:
    """Emits a reduction: ONNX Runtime has no kernel for the operator's version of opset 22."""
    x = e.node.inputs[0]
    p = e.node.attrs["p"]
    if x is None or x.rank is None:
        e.emit("GlobalLpPool", e.inputs, p=p)
        return
    axes = e.ints(tuple(range(2, x.rank)))
    if p in (1, 2):
        e.emit(f"ReduceL{p}", [e.name(x), axes], keepdims=1)
        return
    powered = e.op("Pow", e.op("Abs", e.name(x)), e.const(p, np.float32))
    total = e.op("ReduceSum", powered, axes, keepdims=1)
    e.emit("Pow", [total, e.const(1 / p, np.float32)])


def _emit_max_unpool(e: EmitContext) -> None:
    attrs = e.node.attrs
    inputs = [e.name(value) for value in e.node.inputs[:2]]
    if attrs["output_shape"] is not None or e.node.operand("output_shape") is not None:
        inputs.append(e.param("output_shape"))
    e.emit(
        "MaxUnpool",
        inputs,
        kernel_shape=attrs["kernel"],
        strides=attrs["strides"],
        pads=attrs["pads"],
    )


def _emit_col2im(e: EmitContext) -> None:
    attrs = e.node.attrs
    inputs = [e.inputs[0], e.param("image_shape"), e.param("block_shape")]
    values = {name: attrs[name] for name in ("strides", "dilations", "pads")}
    e.emit("Col2Im", inputs, **values)


def _emit_roi_align(e: EmitContext) -> None:
    attrs = e.node.attrs
    names = ("output_height", "output_width", "spatial_scale", "mode", "sampling_ratio")
    values = {name: attrs[name] for name in names}
    if e.opset >= 16:
        mode = "half_pixel" if attrs["half_pixel"] else "output_half_pixel"
        values["coordinate_transformation_mode"] = mode
    e.emit("RoiAlign", e.inputs, **values)


def _emit_max_roi_pool(e: EmitContext) -> None:
    attrs = e.node.attrs
    shape = (attrs["output_height"], attrs["output_width"])
    e.emit("MaxRoiPool", e.inputs, pooled_shape=shape, spatial_scale=attrs["spatial_scale"])


_AVERAGE = _pool("AveragePool", dilated=19, count_include_pad="count_include_pad")

EMITS: tuple[Emit, ...] = (
    Emit(ops.max_pool, {13: _emit_max_pool}),
    Emit(ops.max_pool_with_indices, {13: _pool("MaxPool", storage_order="column_major")}),
    Emit(ops.average_pool, {13: _AVERAGE}, _average_opset),
    Emit(ops.lp_pool, {13: _pool("LpPool", dilated=18, ceil=18, p="p")}, _lp_opset),
    Emit(ops.global_max_pool, {13: direct("GlobalMaxPool")}),
    Emit(ops.global_average_pool, {13: direct("GlobalAveragePool")}),
    Emit(ops.global_lp_pool, {13: direct("GlobalLpPool", "p"), 22: _emit_global_lp}),
    Emit(unpool.max_unpool, {13: _emit_max_unpool}),
    Emit(unpool.col2im, {18: _emit_col2im}),
    # the first version has no pixel shift
    Emit(
        region.roi_align,
        {13: _emit_roi_align},
        lambda node: 16 if node.attrs["half_pixel"] else 13,
    ),
    Emit(region.max_roi_pool, {13: _emit_max_roi_pool}),
)
