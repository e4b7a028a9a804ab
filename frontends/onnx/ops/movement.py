"""Importers of sizes, reshaping, slicing, repeating and block moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.frontends.onnx.importer import Import, NodeImport, direct
from regraft.ir.dims import Dim, DimLike, exactdiv, product
from regraft.ir.graph import Value
from regraft.ir.ops import blocks, repeating, reshaping, sizes, slicing
from regraft.ir.types import DType


def normal_axis(axis: int, rank: int | None) -> int:
    """Returns the axis counted from the front where the rank is known and the axis is valid."""
    return axis if rank is None or not -rank <= axis < rank else axis % rank


def _tuple(content: Any) -> tuple[DimLike, ...] | None:
    return content if content is None or isinstance(content, tuple) else (content,)


def _axes(item: NodeImport, idx: int, rank: int | None) -> tuple[Value | None, Any]:
    """Splits the operand `axes`: (None, axes counted from the front) when known."""
    operand, content = item.either(idx)
    axes = _tuple(content)
    if axes is None or any(isinstance(axis, Dim) for axis in axes):
        return item.input(idx), None
    return operand, tuple(normal_axis(axis, rank) for axis in axes)  # type: ignore[arg-type]


# -- reshaping ----------------------------------------------------------------------------------


def _reshape_1(item: NodeImport) -> Value:
    return _reshape(item, item.require(0), None, item.attr("shape"))


def _reshape_5(item: NodeImport) -> Value:
    _, content = item.either(1)
    return _reshape(item, item.require(0), item.require(1), _tuple(content))


def _reshape(
    item: NodeImport, x: Value, operand: Value | None, wanted: tuple[DimLike, ...] | None
) -> Value:
    allow_zero = bool(item.attr("allowzero", 0))
    if wanted is not None:
        shape = reshaping.resolve_reshape(x.shape, wanted, allow_zero)
        if shape is not None:
            return item.b.op(reshaping.reshape, x, shape=shape)
        if operand is None:
            operand = item.b.constant(np.array(wanted, np.int64))
    return item.b.op(reshaping.reshape, x, operand, allow_zero=allow_zero)


def _flatten(item: NodeImport) -> Value | Sequence[Value]:
    x, axis = item.require(0), item.attr("axis", 1)
    if x.shape is not None:
        axis = axis + len(x.shape) if axis < 0 else axis
        shape = (product(x.shape[:axis]), product(x.shape[axis:]))
        return item.b.op(reshaping.reshape, x, shape=shape)
    if axis == 0:
        return item.b.op(reshaping.reshape, x, shape=(1, -1))
    if axis == 1:
        return item.b.op(reshaping.reshape, x, item.b.constant(np.array([0, -1], np.int64)))
    return item.opaque()


def _transpose(item: NodeImport) -> Value:
    x, perm = item.require(0), item.attr("perm")
    if perm is None and x.rank is not None:
        perm = tuple(range(x.rank))[::-1]
    return item.b.op(reshaping.transpose, x, perm=perm)


def _squeeze_1(item: NodeImport) -> Value:
    return _squeeze(item, None, item.attr("axes"))


def _squeeze_13(item: NodeImport) -> Value:
    return _squeeze(item, *_axes(item, 1, item.rank()))


def _squeeze(item: NodeImport, operand: Value | None, axes: tuple[int, ...] | None) -> Value:
    x = item.require(0)
    if axes is not None:
        axes = tuple(sorted(normal_axis(axis, x.rank) for axis in axes))
    elif operand is None and x.shape is not None and all(isinstance(dim, int) for dim in x.shape):
        axes = tuple(i for i, dim in enumerate(x.shape) if dim == 1)
    return item.b.op(reshaping.squeeze, x, operand, axes=axes)


def _unsqueeze_1(item: NodeImport) -> Value:
    return _unsqueeze(item, None, item.attr("axes"))


def _unsqueeze_13(item: NodeImport) -> Value:
    return _unsqueeze(item, *_axes(item, 1, None))


def _unsqueeze(item: NodeImport, operand: Value | None, axes: tuple[int, ...] | None) -> Value:
    x = item.require(0)
    if axes is not None and x.rank is not None:
        rank = x.rank + len(axes)
        axes = tuple(sorted(normal_axis(axis, rank) for axis in axes))
    return item.b.op(reshaping.unsqueeze, x, operand, axes=axes)


# -- slicing ------------------------------------------------------------------------------------


def _slice_1(item: NodeImport) -> Value:
    x, starts, ends = item.require(0), item.attr("starts"), item.attr("ends")
    axes = item.attr("axes") or tuple(range(len(starts)))
    axes = tuple(normal_axis(axis, x.rank) for axis in axes)
    steps = (1,) * len(starts)
    return item.b.op(slicing.slice_, x, starts=starts, ends=ends, axes=axes, steps=steps)


def _slice_10(item: NodeImport) -> Value:
    x = item.require(0)
    starts, static_starts = item.either(1)
    ends, static_ends = item.either(2)
    static_starts, static_ends = _tuple(static_starts), _tuple(static_ends)
    axes, static_axes = _axes(item, 3, x.rank)
    steps, static_steps = _axes(item, 4, None)
    count = next((len(s) for s in (static_starts, static_ends, static_axes) if s is not None), None)
    if count is not None:
        if axes is None and static_axes is None:
            static_axes = tuple(range(count))
        if steps is None and static_steps is None:
            static_steps = (1,) * count
    return item.b.op(
        slicing.slice_, x, starts, ends, axes, steps,
        starts=static_starts, ends=static_ends, axes=static_axes, steps=static_steps,
    )  # fmt: skip


def _split_2(item: NodeImport) -> Sequence[Value]:
    return _split(item, None, item.attr("split"))


def _split_13(item: NodeImport) -> Sequence[Value]:
    operand, content = item.either(1)
    return _split(item, operand, _tuple(content))


def _split_18(item: NodeImport) -> Sequence[Value]:
    x, axis = item.require(0), item.attr("axis", 0)
    if item.input(1) is not None or x.shape is None:
        return _split_13(item)
    axis = normal_axis(axis, len(x.shape))
    return _split(item, None, slicing.equal_split(x.shape[axis], item.num_outputs))


def _split(
    item: NodeImport, operand: Value | None, parts: tuple[DimLike, ...] | None
) -> Sequence[Value]:
    x, count = item.require(0), item.num_outputs
    axis = normal_axis(item.attr("axis", 0), x.rank)
    if operand is None and parts is None and x.shape is not None:
        parts = (exactdiv(x.shape[axis], count),) * count
    return item.b.multi(slicing.split, x, operand, num_outputs=count, sizes=parts, axis=axis)


def _concat(item: NodeImport) -> Value:
    rank = next((v.rank for v in item.inputs if v is not None and v.rank is not None), None)
    axis = normal_axis(item.attr("axis", 1), rank)
    return item.b.op(slicing.concat, *item.inputs, axis=axis)


# -- repeating ----------------------------------------------------------------------------------


def _expand(item: NodeImport) -> Value:
    operand, content = item.either(1)
    node = item.b.node(repeating.expand, item.require(0), operand, shape=_tuple(content))
    if content is not None and node.output.shape is not None:
        node.attrs["shape"] = node.output.shape  # what the operand's ones keep is written out
    return node.output


def _tile(item: NodeImport) -> Value:
    operand, content = item.either(1)
    return item.b.op(repeating.tile, item.require(0), operand, repeats=_tuple(content))


def _pad_2(item: NodeImport) -> Value:
    x, fill, mode = item.require(0), item.attr("value", 0.0), item.attr("mode", "constant")
    value = None
    if mode == "constant" and fill:
        value = item.b.constant(np.array(fill), x.dtype or DType.F32)
    return item.b.op(repeating.pad, x, None, value, pads=item.attr("pads"), mode=mode)


def _pad_11(item: NodeImport) -> Value:
    x, mode = item.require(0), item.attr("mode", "constant")
    pads, static_pads = item.either(1)
    static_pads = _tuple(static_pads)
    axes, static_axes = _axes(item, 3, x.rank)
    if static_pads is not None and static_axes is not None and x.rank is not None:
        full: list[DimLike] = [0] * (2 * x.rank)
        for i, axis in enumerate(static_axes):
            full[axis] = static_pads[i]
            full[axis + x.rank] = static_pads[i + len(static_axes)]
        static_pads, static_axes = tuple(full), None
    value = item.input(2) if mode == "constant" else None
    return item.b.op(
        repeating.pad, x, pads, value, axes, pads=static_pads, axes=static_axes, mode=mode
    )


# -- blocks -------------------------------------------------------------------------------------


def _center_crop_pad(item: NodeImport) -> Value:
    operand, content = item.either(1)
    return item.b.op(
        blocks.center_crop_pad, item.require(0), operand,
        shape=_tuple(content), axes=item.attr("axes"),
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    Import("Shape", {1: direct(sizes.shape, "start", "end")}),
    Import("Size", {1: direct(sizes.size)}),
    Import("Reshape", {1: _reshape_1, 5: _reshape_5}),
    Import("Flatten", {1: _flatten}),
    Import("Transpose", {1: _transpose}),
    Import("Squeeze", {1: _squeeze_1, 13: _squeeze_13}),
    Import("Unsqueeze", {1: _unsqueeze_1, 13: _unsqueeze_13}),
    Import("Slice", {1: _slice_1, 10: _slice_10}),
    Import("Split", {2: _split_2, 13: _split_13, 18: _split_18}),
    Import("Concat", {1: _concat}),
    Import("Expand", {8: _expand}),
    Import("Tile", {6: _tile}),
    Import("Pad", {2: _pad_2, 11: _pad_11}),
    Import("DepthToSpace", {1: direct(blocks.depth_to_space, "mode", block_size="blocksize")}),
    Import("SpaceToDepth", {1: direct(blocks.space_to_depth, "mode", block_size="blocksize")}),
    Import("ReverseSequence", {10: direct(blocks.reverse_sequence, "time_axis", "batch_axis")}),
    Import("CenterCropPad", {18: _center_crop_pad}),
)
