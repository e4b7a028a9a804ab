"""Moves by position: depth_to_space, space_to_depth, reverse_sequence, center_crop_pad."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import Shape, exactdiv
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node, Value
from regraft.ir.ops.movement_rules import pinned_rule
from regraft.ir.ops.shapes import infer_same, normalize_axis
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MOVEMENT = Trait.PURE | Trait.DATA_MOVEMENT


def _unknown_image(node: Node, x: Value | None) -> Type:
    fresh = tuple(node.fresh_dim(0, i) for i in range(4))
    return TensorType(None if x is None else x.dtype, fresh)


def _image_sizes(node: Node, shape: Shape) -> Shape:
    if len(shape) != 4:
        raise node.error("expected 4 axes, N C H W")
    return shape


def _infer_depth_to_space(node: Node) -> Type:
    x, block = node.inputs[0], node.attrs["block_size"]
    if x is None or x.shape is None:
        return _unknown_image(node, x)
    n, c, h, w = _image_sizes(node, x.shape)
    return TensorType(x.dtype, (n, exactdiv(c, block * block), h * block, w * block))


def _eval_depth_to_space(c: EvalContext, x: Array) -> Array:
    block = c.attrs["block_size"]
    n, ch, h, w = x.shape
    depth = ch // (block * block)
    if c.attrs["mode"] == "DCR":
        parts = x.reshape(n, block, block, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, depth, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, depth, h * block, w * block)


def _deep_term(node: Node) -> str:
    return "p! q! c" if node.attrs["mode"] == "DCR" else "c p! q!"


def _axes_depth_to_space(node: Node) -> str:
    return f"n ({_deep_term(node)}) h w -> n c (h p!) (w q!)"


depth_to_space = OpSpec(
    name="depth_to_space",
    source="ONNX DepthToSpace-13",
    operands=(Operand("x"),),
    attrs=(Attr("block_size", AttrKind.INT), Attr("mode", AttrKind.STR, "DCR")),
    traits=_MOVEMENT,
    axes=_axes_depth_to_space,
    infer=_infer_depth_to_space,
    eval=_eval_depth_to_space,
)


def _infer_space_to_depth(node: Node) -> Type:
    x, block = node.inputs[0], node.attrs["block_size"]
    if x is None or x.shape is None:
        return _unknown_image(node, x)
    n, c, h, w = _image_sizes(node, x.shape)
    return TensorType(x.dtype, (n, c * (block * block), exactdiv(h, block), exactdiv(w, block)))


def _eval_space_to_depth(c: EvalContext, x: Array) -> Array:
    block = c.attrs["block_size"]
    n, ch, h, w = x.shape
    parts = x.reshape(n, ch, h // block, block, w // block, block)
    perm = (0, 3, 5, 1, 2, 4) if c.attrs["mode"] == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.transpose(perm).reshape(n, ch * block * block, h // block, w // block)


def _axes_space_to_depth(node: Node) -> str:
    return f"n c (h p!) (w q!) -> n ({_deep_term(node)}) h w"


space_to_depth = OpSpec(
    name="space_to_depth",
    source="ONNX SpaceToDepth-28",
    operands=(Operand("x"),),
    attrs=(Attr("block_size", AttrKind.INT), Attr("mode", AttrKind.STR, "DCR")),
    traits=_MOVEMENT,
    axes=_axes_space_to_depth,
    infer=_infer_space_to_depth,
    eval=_eval_space_to_depth,
)


def _axes_reverse_sequence(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    time, batch = node.attrs["time_axis"], node.attrs["batch_axis"]
    term = " ".join(f"t{i}!" if i == time else f"d{i}" for i in range(rank))
    return f"{term}, d{batch} -> {term}"


def _eval_reverse_sequence(c: EvalContext, x: Array, lengths: Array) -> Array:
    time, batch = c.attrs["time_axis"], c.attrs["batch_axis"]
    moved = np.moveaxis(x, (batch, time), (0, 1)).copy()
    for row, length in zip(moved, lengths, strict=True):
        row[:length] = row[:length][::-1]
    return np.moveaxis(moved, (0, 1), (batch, time))


reverse_sequence = OpSpec(
    name="reverse_sequence",
    source="ONNX ReverseSequence-10",
    operands=(Operand("x"), Operand("lengths")),
    attrs=(Attr("time_axis", AttrKind.INT, 0), Attr("batch_axis", AttrKind.INT, 1)),
    traits=_MOVEMENT,
    axes=_axes_reverse_sequence,
    infer=infer_same,
    eval=_eval_reverse_sequence,
)


def _crop_axes(node: Node, rank: int) -> tuple[int, ...]:
    axes = node.attrs["axes"]
    if axes is None:
        return tuple(range(rank))
    return tuple(normalize_axis(node, axis, rank) for axis in axes)


def _infer_center_crop_pad(node: Node) -> Type:
    x, shape = node.inputs[0], node.static("shape")
    if x is None or x.shape is None:
        return TensorType(None if x is None else x.dtype, None)
    axes = _crop_axes(node, len(x.shape))
    result = list(x.shape)
    if shape is not None and len(shape) != len(axes):
        raise node.error(f"{len(shape)} sizes for {len(axes)} axes")
    for i, axis in enumerate(axes):
        result[axis] = node.fresh_dim(0, axis) if shape is None else shape[i]
    return TensorType(x.dtype, tuple(result))


def _axes_center_crop_pad(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    return pinned_rule(node, rank, _crop_axes(node, rank))


def _eval_center_crop_pad(c: EvalContext, x: Array, shape: Array | None = None) -> Array:
    sizes = c.param("shape", shape)
    for axis, size in zip(_crop_axes(c.node, x.ndim), sizes, strict=True):
        have = x.shape[axis]
        if size < have:
            start = (have - size) // 2
            x = np.take(x, range(start, start + size), axis)
        elif size > have:
            before = (size - have) // 2
            widths = [(0, 0)] * x.ndim
            widths[axis] = (before, size - have - before)
            x = np.pad(x, widths)
    return x


center_crop_pad = OpSpec(
    name="center_crop_pad",
    source="ONNX CenterCropPad-18",
    operands=(Operand("x"), Operand("shape", optional=True, either=AttrKind.DIMS)),
    attrs=(Attr("axes", AttrKind.INTS, None),),
    traits=_MOVEMENT,
    axes=_axes_center_crop_pad,
    infer=_infer_center_crop_pad,
    eval=_eval_center_crop_pad,
)

OPS: tuple[OpSpec, ...] = (depth_to_space, space_to_depth, reverse_sequence, center_crop_pad)
