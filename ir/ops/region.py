"""Pooling of regions of interest: roi_align, max_roi_pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]

_RESULT = (
    Attr("output_height", AttrKind.INT),
    Attr("output_width", AttrKind.INT),
    Attr("spatial_scale", AttrKind.FLOAT, 1.0),  # from coordinates of a region to pixels of x
)


def _infer_regions(node: Node) -> Type:
    x, rois = node.inputs[0], node.inputs[1]
    if x is None or rois is None:
        raise node.error("x or rois is missing")
    num = node.fresh_dim(0, 0) if rois.shape is None else rois.shape[0]
    channels = node.fresh_dim(0, 1) if x.shape is None else x.shape[1]
    return TensorType(
        x.dtype, (num, channels, node.attrs["output_height"], node.attrs["output_width"])
    )


def _line(
    start: float, size: float, bins: int, samples: int, limit: int
) -> tuple[Array, Array, Array, Array]:
    """Returns (lower pixel, upper pixel, weight of the upper, inside) of samples in all bins."""
    step = size / bins
    pos = start + (np.arange(bins)[:, None] + (np.arange(samples) + 0.5) / samples) * step
    pos = pos.reshape(-1)
    inside = (pos >= -1) & (pos <= limit)
    pos = np.clip(pos, 0, limit - 1)
    low = np.floor(pos).astype(np.int64)
    high = np.minimum(low + 1, limit - 1)
    return low, high, pos - low, inside


def _eval_roi_align(c: EvalContext, x: Array, rois: Array, batch: Array) -> Array:
    bins_y, bins_x = c.attrs["output_height"], c.attrs["output_width"]
    shift = 0.5 if c.attrs["half_pixel"] else 0.0
    out = np.zeros((len(rois), x.shape[1], bins_y, bins_x), x.dtype)
    for i, roi in enumerate(rois):
        left, top, right, bottom = (float(v) * c.attrs["spatial_scale"] - shift for v in roi)
        width, height = right - left, bottom - top
        if not c.attrs["half_pixel"]:
            width, height = max(width, 1.0), max(height, 1.0)
        num = c.attrs["sampling_ratio"]
        num_y = num if num > 0 else int(np.ceil(height / bins_y))
        num_x = num if num > 0 else int(np.ceil(width / bins_x))
        if num_y <= 0 or num_x <= 0:
            continue
        y0, y1, fy, in_y = _line(top, height, bins_y, num_y, x.shape[2])
        x0, x1, fx, in_x = _line(left, width, bins_x, num_x, x.shape[3])
        plane = x[int(batch[i])]
        inside = in_y[:, None] & in_x
        corners = [
            plane[:, ys[:, None], xs] * (wy[:, None] * wx * inside)
            for ys, wy in ((y0, 1 - fy), (y1, fy))
            for xs, wx in ((x0, 1 - fx), (x1, fx))
        ]
        shape = (x.shape[1], bins_y, num_y, bins_x, num_x)
        if c.attrs["mode"] == "max":
            # the largest weighted corner, as the operator defines it, not the interpolated value
            out[i] = np.max(corners, axis=0).reshape(shape).max(axis=(2, 4))
        else:
            out[i] = np.sum(corners, axis=0).reshape(shape).mean(axis=(2, 4))
    return out


roi_align = OpSpec(
    name="roi_align",
    source="ONNX RoiAlign-22",
    operands=(Operand("x"), Operand("rois"), Operand("batch")),
    attrs=(
        *_RESULT,
        Attr("mode", AttrKind.STR, "avg"),  # avg, max
        Attr("sampling_ratio", AttrKind.INT, 0),  # samples per bin and axis; 0: by region size
        Attr("half_pixel", AttrKind.BOOL, True),
    ),
    axes="n! c h! w!, r k!, r -> r c p! q!",
    infer=_infer_regions,
    eval=_eval_roi_align,
)


def _eval_max_roi_pool(c: EvalContext, x: Array, rois: Array) -> Array:
    bins_y, bins_x = c.attrs["output_height"], c.attrs["output_width"]
    out = np.zeros((len(rois), x.shape[1], bins_y, bins_x), x.dtype)
    for i, roi in enumerate(rois):
        scaled = np.asarray(roi[1:], np.float64) * c.attrs["spatial_scale"]
        # halves away from zero
        left, top, right, bottom = np.trunc(scaled + np.copysign(0.5, scaled)).astype(int)
        plane = x[int(roi[0])]
        rows = _bin_edges(top, max(bottom - top + 1, 1), bins_y, x.shape[2])
        columns = _bin_edges(left, max(right - left + 1, 1), bins_x, x.shape[3])
        for p, (y0, y1) in enumerate(rows):
            for q, (x0, x1) in enumerate(columns):
                if y1 > y0 and x1 > x0:
                    out[i, :, p, q] = plane[:, y0:y1, x0:x1].max(axis=(1, 2))
    return out


def _bin_edges(start: int, size: int, bins: int, limit: int) -> list[tuple[int, int]]:
    step = size / bins
    edges = [
        (start + int(np.floor(i * step)), start + int(np.ceil((i + 1) * step))) for i in range(bins)
    ]
    return [(min(max(a, 0), limit), min(max(b, 0), limit)) for a, b in edges]


max_roi_pool = OpSpec(
    name="max_roi_pool",
    source="ONNX MaxRoiPool-22",
    operands=(Operand("x"), Operand("rois")),
    attrs=_RESULT,
    axes="n! c h! w!, r k! -> r c p! q!",
    infer=_infer_regions,
    eval=_eval_max_roi_pool,
)

OPS: tuple[OpSpec, ...] = (roi_align, max_roi_pool)
