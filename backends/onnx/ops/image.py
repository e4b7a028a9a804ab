"""Emitters of image operators: resize, grid_sample, affine_grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.backends.onnx.emitter import Emit, EmitContext, direct
from regraft.ir.graph import Node
from regraft.ir.ops import grid_sample as grid
from regraft.ir.ops import resize as ops


def _emit_resize(e: EmitContext) -> None:
    attrs = e.node.attrs
    axes: tuple[int, ...] = attrs["axes"]
    if not axes:
        e.emit("Identity", e.inputs[:1])
        return
    values: dict[str, Any] = {
        "mode": attrs["mode"],
        "coordinate_transformation_mode": attrs["coordinates"],
        "nearest_mode": attrs["nearest"],
        "cubic_coeff_a": attrs["cubic_a"],
        "exclude_outside": attrs["exclude_outside"],
        "extrapolation_value": attrs["extrapolation"],
    }
    if e.opset >= 18:
        values["antialias"] = attrs["antialias"]
        values["keep_aspect_ratio_policy"] = attrs["aspect"]
    partial = needs_axes(e.node, e.opset)
    if partial:
        values["axes"] = axes
    roi, scales, sizes = (
        _setting(e, name, full=not partial) for name in ("roi", "scales", "sizes")
    )
    inputs = [e.inputs[0], roi, scales, sizes]
    while not inputs[-1]:
        inputs.pop()
    e.emit("Resize", inputs, **values)


def needs_axes(node: Node, opset: int) -> bool:
    """Returns whether settings stay per resized axis instead of covering all axes.

    Runtimes take settings for all axes since opset 13; symbolic sizes of other axes would cost
    nodes, so that they are left out where the opset has the attribute `axes`.
    """
    x, axes = node.inputs[0], node.attrs["axes"]
    rank = None if x is None else x.rank
    if rank is None or x is None or x.shape is None or axes == tuple(range(rank)):
        return rank is not None and axes != tuple(range(rank))
    if any(value is not None for value in node.inputs[1:]) or node.attrs["aspect"] != "stretch":
        return True
    if node.attrs["sizes"] is None:
        return False
    others = [dim for axis, dim in enumerate(x.shape) if axis not in axes]
    return opset >= 18 and not all(isinstance(dim, int) for dim in others)


def _setting(e: EmitContext, name: str, *, full: bool) -> str:
    """Returns the operand `name` in the form for the resized axes or for all axes."""
    static = e.node.attrs[name]
    if static is None:
        return e.name(e.node.operand(name))
    x, axes = e.node.inputs[0], e.node.attrs["axes"]
    shape = None if x is None else x.shape
    if full and shape is not None:
        rank = len(shape)
        place = {axis: i for i, axis in enumerate(axes)}
        if name == "roi":
            starts = [static[place[a]] if a in place else 0.0 for a in range(rank)]
            ends = [static[len(axes) + place[a]] if a in place else 1.0 for a in range(rank)]
            static = (*starts, *ends)
        elif name == "scales":
            static = tuple(static[place[a]] if a in place else 1.0 for a in range(rank))
        else:
            static = tuple(static[place[a]] if a in place else shape[a] for a in range(rank))
    return e.ints(static) if name == "sizes" else e.const(static, np.float32)


def _resize_opset(node: Node) -> int:
    if node.attrs["coordinates"] == "half_pixel_symmetric":
        return 19
    if node.attrs["antialias"] or node.attrs["aspect"] != "stretch" or needs_axes(node, 13):
        return 18
    return 13


_OLD_MODES = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}


def _emit_grid_sample_16(e: EmitContext) -> None:
    attrs = e.node.attrs
    e.emit(
        "GridSample",
        e.inputs,
        mode=_OLD_MODES[attrs["mode"]],
        padding_mode=attrs["padding"],
        align_corners=attrs["align_corners"],
    )


def _grid_sample_opset(node: Node) -> int:
    x = node.inputs[0]
    return 16 if x is not None and x.rank == 4 else 20


def _emit_affine_grid(e: EmitContext) -> None:
    inputs = [e.inputs[0], e.param("size")]
    e.emit("AffineGrid", inputs, align_corners=e.node.attrs["align_corners"])


EMITS: tuple[Emit, ...] = (
    Emit(ops.resize, {13: _emit_resize}, _resize_opset),
    Emit(
        grid.grid_sample,
        {
            16: _emit_grid_sample_16,
            20: direct("GridSample", "mode", "align_corners", padding_mode="padding"),
        },
        _grid_sample_opset,
    ),
    Emit(grid.affine_grid, {20: _emit_affine_grid}),
)
