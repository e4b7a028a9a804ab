"""deform_conv: convolution whose taps move by learned offsets."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.interpolation import sample_points
from regraft.ir.ops.windows import (
    WINDOW_ATTRS,
    spatial_labels,
    static_windows,
    window_counts,
    windows_of,
)
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]


def _infer_deform_conv(node: Node) -> Type:
    x, weight, offset = node.inputs[:3]
    if x is None or weight is None or offset is None:
        raise node.error("x, weight or offset is missing")
    if x.shape is None:
        return TensorType(x.dtype, None)
    if weight.shape is None:
        fresh = [node.fresh_dim(0, axis) for axis in range(1, len(x.shape))]
        return TensorType(x.dtype, (x.shape[0], *fresh))
    if offset.shape is not None:
        return TensorType(x.dtype, (x.shape[0], weight.shape[0], *offset.shape[2:]))
    counts = window_counts(windows_of(node.attrs, weight.shape[2:]), x.shape[2:])
    return TensorType(x.dtype, (x.shape[0], weight.shape[0], *counts))


def _axes_deform_conv(node: Node) -> str | None:
    x = node.inputs[0]
    if x is None or x.rank is None:
        return None
    s, k, t = (spatial_labels(prefix, x.rank - 2) for prefix in "skt")
    grouped = node.attrs["groups"] != 1
    if node.attrs["offset_groups"] == 1:
        i, o, w = ("(g ~i)", "(g o*)", "~i") if grouped else ("~i", "o", "~i")
    else:
        # channels share offsets in blocks, which need not be the groups of the weight
        i, o, w = ("(g! i!)", "(g! o*)", "i!") if grouped else ("i!", "o", "i!")
    return f"n {i} {s}, {o} {w} {k}, n f! {t}, {o}, n m! {t} -> n {o} {t}"


def _flops_deform_conv(node: Node) -> DimLike | None:
    weight, result = node.inputs[1], node.output
    if weight is None or weight.shape is None or result.shape is None:
        return None
    return product(weight.shape[1:]) * product(result.shape) * 2


def _eval_deform_conv(
    c: EvalContext,
    x: Array,
    weight: Array,
    offset: Array,
    bias: Array | None,
    mask: Array | None,
) -> Array:
    kernel, spatial = weight.shape[2:], x.shape[2:]
    rank, num_taps = len(kernel), prod(kernel)
    batch, channels = x.shape[:2]
    sharing, groups = c.attrs["offset_groups"], c.attrs["groups"]
    begin, _, counts = static_windows(windows_of(c.attrs, kernel), spatial)
    places = prod(counts)
    # where each tap of each window lies without offsets: [1, taps, rank, *counts]
    steps = zip(kernel, c.attrs["dilations"], strict=True)
    tap_pos = np.stack(
        np.meshgrid(*(np.arange(k) * d for k, d in steps), indexing="ij"), axis=-1
    ).reshape(1, num_taps, rank, *(1,) * rank)
    starts = [
        np.arange(n) * s - b for n, s, b in zip(counts, c.attrs["strides"], begin, strict=True)
    ]
    window_pos = np.stack(np.meshgrid(*starts, indexing="ij"))[None, None]
    points = offset.reshape(batch * sharing, num_taps, rank, *counts) + tap_pos + window_pos
    points = np.moveaxis(points, 2, -1).reshape(batch * sharing, num_taps * places, rank)
    planes = x.reshape(batch * sharing, channels // sharing, *spatial)
    columns = sample_points(planes, points, "linear", "zeros", corners=False)
    if mask is not None:
        columns = columns * mask.reshape(batch * sharing, 1, num_taps * places)
    columns = columns.reshape(batch, groups, channels // groups * num_taps, places)
    out = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
    out = out.reshape(batch, weight.shape[0], *counts)
    return out if bias is None else out + bias.reshape(1, -1, *(1,) * rank)


deform_conv = OpSpec(
    name="deform_conv",
    source="ONNX DeformConv-22",
    operands=(
        Operand("x"),
        Operand("weight"),
        Operand("offset"),
        Operand("bias", optional=True),
        Operand("mask", optional=True),
    ),
    attrs=(
        *WINDOW_ATTRS,
        Attr("groups", AttrKind.INT, 1),
        Attr("offset_groups", AttrKind.INT, 1),
    ),
    axes=_axes_deform_conv,
    counts={"groups": "g"},
    infer=_infer_deform_conv,
    eval=_eval_deform_conv,
    flops=_flops_deform_conv,
)

OPS: tuple[OpSpec, ...] = (deform_conv,)
