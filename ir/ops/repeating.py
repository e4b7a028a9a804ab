"""Copies of elements around or next to themselves: expand, tile, pad."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import Shape, known_equal
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node
from regraft.ir.ops.moved import content_moved
from regraft.ir.ops.movement_rules import data_rule, pinned_rule
from regraft.ir.ops.shapes import broadcast, normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MOVEMENT = Trait.PURE | Trait.DATA_MOVEMENT


def _static_tuple(node: Node, name: str) -> Shape | None:
    static = node.static(name)
    return static if static is None or isinstance(static, tuple) else (static,)


def _length(node: Node, name: str) -> int | None:
    """Returns the static length of a 1-d operand, None when unknown."""
    operand = node.operand(name)
    if operand is None or not operand.shape or not isinstance(operand.shape[0], int):
        return None
    return operand.shape[0]


# -- expand -------------------------------------------------------------------------------------


def _infer_expand(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    shape = _static_tuple(node, "shape")
    if x.shape is None:
        return TensorType(x.dtype, None)
    if shape is not None:
        return TensorType(x.dtype, broadcast(node, x.shape, shape))
    length = _length(node, "shape")
    if length is None:
        return TensorType(x.dtype, None)
    rank = max(length, len(x.shape))
    aligned = (1,) * (rank - len(x.shape)) + x.shape
    # a known size above 1 stays; an axis the operand does not reach stays too
    return TensorType(
        x.dtype,
        tuple(
            dim
            if (isinstance(dim, int) and dim != 1) or i < rank - length
            else node.fresh_dim(0, i)
            for i, dim in enumerate(aligned)
        ),
    )


def _axes_expand(node: Node) -> str | None:
    x, out = node.inputs[0], node.output.shape
    if x is None or x.shape is None or out is None:
        return None
    left, right = [], []
    offset = len(out) - len(x.shape)
    for i, size in enumerate(out):
        right.append(f"d{i}")
        if i < offset:
            continue
        dim = x.shape[i - offset]
        if dim == 1:
            left.append("1")
        elif known_equal(dim, size):
            left.append(f"d{i}")
        else:  # either 1 or all of the result's axis, only run time knows
            left.append(f"x{i}!")
            right[-1] = f"y{i}!"
    return data_rule(node, " ".join(left), " ".join(right))


def _eval_expand(c: EvalContext, x: Array, shape: Array | None = None) -> Array:
    target = c.param("shape", shape)
    sizes = np.broadcast_shapes(x.shape, target if isinstance(target, tuple) else (target,))
    return np.broadcast_to(x, sizes).copy()


expand = OpSpec(
    name="expand",
    source="ONNX Expand-13",
    operands=(Operand("x"), Operand("shape", optional=True, either=AttrKind.DIMS)),
    traits=_MOVEMENT,
    axes=_axes_expand,
    counts={"shape": "->"},
    infer=_infer_expand,
    content=content_moved,
    eval=_eval_expand,
)


# -- tile ---------------------------------------------------------------------------------------


def _infer_tile(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    repeats = _static_tuple(node, "repeats")
    if x.shape is None:
        count = _length(node, "repeats") if repeats is None else len(repeats)
        if count is None:
            return TensorType(x.dtype, None)
        return TensorType(x.dtype, tuple(node.fresh_dim(0, i) for i in range(count)))
    if repeats is None:
        return TensorType(x.dtype, tuple(node.fresh_dim(0, i) for i in range(len(x.shape))))
    if len(repeats) != len(x.shape):
        raise node.error(f"{len(repeats)} repeats for {len(x.shape)} axes")
    return TensorType(
        x.dtype, tuple(dim * count for dim, count in zip(x.shape, repeats, strict=True))
    )


def _axes_tile(node: Node) -> str | None:
    repeats, rank = _static_tuple(node, "repeats"), node.output.rank
    if repeats is None or rank is None:
        return None
    return pinned_rule(node, rank, {i for i, count in enumerate(repeats) if count != 1})


def _eval_tile(c: EvalContext, x: Array, repeats: Array | None = None) -> Array:
    counts = c.param("repeats", repeats)
    return np.tile(x, counts)


tile = OpSpec(
    name="tile",
    source="ONNX Tile-13",
    operands=(Operand("x"), Operand("repeats", optional=True, either=AttrKind.DIMS)),
    traits=_MOVEMENT,
    axes=_axes_tile,
    infer=_infer_tile,
    content=content_moved,
    eval=_eval_tile,
)


# -- pad ----------------------------------------------------------------------------------------


def padded_axes(node: Node) -> tuple[int, ...] | None:
    """Returns the non-negative axes of a `pad` in order, None when only run time knows them."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    axes = _static_tuple(node, "axes")
    if axes is not None:
        return tuple([normalize_axis(node, axis, len(x.shape)) for axis in axes])  # type: ignore[arg-type]
    return tuple(range(len(x.shape))) if node.operand("axes") is None else None


def _infer_pad(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    pads = _static_tuple(node, "pads")
    if x.shape is None:
        count = _length(node, "pads") if pads is None else len(pads)
        if count is None or node.static("axes") is not None or node.operand("axes") is not None:
            return TensorType(x.dtype, None)
        return TensorType(x.dtype, tuple(node.fresh_dim(0, i) for i in range(count // 2)))
    axes = padded_axes(node)
    if axes is None:
        return TensorType(x.dtype, tuple(node.fresh_dim(0, i) for i in range(len(x.shape))))
    shape = list(x.shape)
    if pads is None:
        for axis in axes:
            shape[axis] = node.fresh_dim(0, axis)
        return TensorType(x.dtype, tuple(shape))
    if len(pads) != 2 * len(axes):
        raise node.error(f"{len(pads)} pads for {len(axes)} axes, expected {2 * len(axes)}")
    for i, axis in enumerate(axes):
        shape[axis] = shape[axis] + pads[i] + pads[i + len(axes)]
    return TensorType(x.dtype, tuple(shape))


def _axes_pad(node: Node) -> str | None:
    axes, rank = padded_axes(node), node.output.rank
    if axes is None or rank is None:
        return None
    pads = _static_tuple(node, "pads")
    pinned = {
        axis
        for i, axis in enumerate(axes)
        if pads is None or pads[i] != 0 or pads[i + len(axes)] != 0
    }
    return pinned_rule(node, rank, pinned)


def _eval_pad(
    c: EvalContext,
    x: Array,
    pads: Array | None = None,
    value: Array | None = None,
    axes: Array | None = None,
) -> Array:
    amounts = c.param("pads", pads)
    where = c.param("axes", axes)
    if where is None:
        where = range(x.ndim)
    elif not isinstance(where, tuple):
        where = (where,)
    count = len(where)
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(where):
        # negative pads cut
        lo, hi = amounts[i], amounts[i + count]
        if lo < 0 or hi < 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(max(-lo, 0), x.shape[axis] - max(-hi, 0))
            x = x[tuple(index)]
        widths[axis] = (max(lo, 0), max(hi, 0))
    mode = c.attrs["mode"]
    if mode == "constant":
        fill = _zero(x) if value is None else value.reshape(())[()]
        return np.pad(x, widths, constant_values=fill)
    return np.pad(x, widths, mode=mode)


def _zero(x: Array) -> Any:
    return "" if x.dtype == object and any(isinstance(item, str) for item in x.flat) else 0


pad = OpSpec(
    name="pad",
    source="ONNX Pad-25",
    operands=(
        Operand("x"),
        Operand("pads", optional=True, either=AttrKind.DIMS),
        Operand("value", optional=True),
        Operand("axes", optional=True, either=AttrKind.INTS),
    ),
    attrs=(Attr("mode", AttrKind.STR, "constant"),),  # constant, reflect, edge, wrap
    traits=_MOVEMENT,
    axes=_axes_pad,
    infer=_infer_pad,
    content=content_moved,
    eval=_eval_pad,
)

OPS: tuple[OpSpec, ...] = (expand, tile, pad)
