"""Other axes for the same elements: reshape, transpose, squeeze, unsqueeze."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, Shape, exactdiv, product
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Content, Node
from regraft.ir.ops.moved import content_moved
from regraft.ir.ops.movement_rules import (
    data_rule,
    labels,
    ones,
    partial_reshape_rule,
    reshape_rule,
)
from regraft.ir.ops.shapes import normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MOVEMENT = Trait.PURE | Trait.DATA_MOVEMENT


# -- reshape ------------------------------------------------------------------------------------


def resolve_reshape(x: Shape | None, wanted: Shape, allow_zero: bool) -> Shape | None:
    """Returns the sizes that an ONNX shape operand stands for.

    Args:
        x: Shape of the data, None when unknown.
        wanted: Content of the shape operand: sizes, -1 (the rest), 0 (copied from `x`).
        allow_zero: 0 means an empty axis.

    Returns:
        One size per axis, or None when `x` is needed and unknown. A single -1 stays where only
        the shape of `x` could say what it is.
    """
    result = list(wanted)
    rest = -1
    for i, dim in enumerate(wanted):
        if dim == 0 and not allow_zero:
            if x is None or i >= len(x):
                return None
            result[i] = x[i]
        elif dim == -1:
            rest = i
    if rest >= 0 and x is not None:
        known = (*result[:rest], *result[rest + 1 :])
        if 0 in known:
            return None
        result[rest] = _rest(x, known)
    return tuple(result)


def _rest(x: Shape, known: Shape) -> DimLike:
    """Returns the size that fills `x` next to the `known` ones."""
    left, right = _without_shared(x, known)
    return exactdiv(product(left), product(right))


def _without_shared(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """Returns both shapes without their common first and last axes: symbolic products are dear."""
    first, last = 0, 0
    most = min(len(a), len(b))
    while first < most and a[first] == b[first]:
        first += 1
    while last < most - first and a[-1 - last] == b[-1 - last]:
        last += 1
    return a[first : len(a) - last], b[first : len(b) - last]


def _infer_reshape(node: Node) -> Type:
    (x,), operand = operands_of(node, 1), node.inputs[1]
    shape: Shape | None = node.attrs["shape"]
    if shape is None:
        if operand is None:
            raise node.error("neither the attribute nor the operand `shape` is given")
        if isinstance(operand.content, tuple):
            shape = resolve_reshape(x.shape, operand.content, node.attrs["allow_zero"])
    if shape is None:
        return TensorType(x.dtype, _unknown_shape(node, operand.shape if operand else None))
    if -1 in shape:
        i = shape.index(-1)
        size = (
            node.fresh_dim(0, i)
            if x.shape is None
            else _rest(x.shape, (*shape[:i], *shape[i + 1 :]))
        )
        shape = (*shape[:i], size, *shape[i + 1 :])
    if x.shape is not None:
        _check_elements(node, x.shape, shape)
    return TensorType(x.dtype, shape)


def _unknown_shape(node: Node, operand: Shape | None) -> Shape | None:
    """Returns fresh sizes when the static length of a shape operand says the rank."""
    if operand is None or len(operand) != 1 or not isinstance(operand[0], int):
        return None
    return tuple(node.fresh_dim(0, i) for i in range(operand[0]))


def _check_elements(node: Node, x: Shape, shape: Shape) -> None:
    left, right = _without_shared(x, shape)
    before, after = product(left), product(right)
    if before == after or (0 in x and 0 in shape):
        return
    if isinstance(before, int) and isinstance(after, int):
        raise node.error(f"{before} elements do not fill shape {list(shape)}")
    node.assume_equal(before, after, "elements of reshape")


def _axes_reshape(node: Node) -> str | None:
    x, out = node.inputs[0], node.output
    if x is None or x.shape is None or out.shape is None:
        return None
    sides = reshape_rule(x.shape, out.shape) or partial_reshape_rule(x.shape, out.shape)
    return None if sides is None else data_rule(node, *sides)


def _eval_reshape(c: EvalContext, x: Array, shape: Array | None = None) -> Array:
    sizes = list(c.param("shape", shape))
    if shape is not None and not c.attrs["allow_zero"]:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _content_reshape(node: Node) -> Content | None:
    x, shape = node.inputs[0], node.output.shape
    if x is None or shape is None or len(shape) > 1:
        return None
    content = x.content
    if content is None:
        return content_moved(node)
    if shape:
        return content if isinstance(content, tuple) else (content,)
    return content[0] if isinstance(content, tuple) and len(content) == 1 else None


reshape = OpSpec(
    name="reshape",
    source="ONNX Reshape-25",
    operands=(Operand("x"), Operand("shape", optional=True, either=AttrKind.DIMS)),
    attrs=(Attr("allow_zero", AttrKind.BOOL, False),),  # of the operand form only
    traits=_MOVEMENT,
    axes=_axes_reshape,
    counts={"shape": "->"},
    infer=_infer_reshape,
    content=_content_reshape,
    eval=_eval_reshape,
)


# -- transpose ----------------------------------------------------------------------------------


def _infer_transpose(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    perm, shape = node.attrs["perm"], x.shape
    if shape is None:
        if perm is None:
            return TensorType(x.dtype, None)
        return TensorType(x.dtype, tuple(node.fresh_dim(0, i) for i in range(len(perm))))
    if perm is None:
        return TensorType(x.dtype, shape[::-1])
    if len(perm) != len(shape) or set(perm) != set(range(len(shape))):
        raise node.error(f"perm {list(perm)} is no permutation of {len(shape)} axes")
    return TensorType(x.dtype, tuple([shape[i] for i in perm]))


def _axes_transpose(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    perm = node.attrs["perm"] or range(rank)[::-1]
    return f"{labels(rank)} -> {' '.join(f'd{i}' for i in perm)}"


transpose = OpSpec(
    name="transpose",
    source="ONNX Transpose-25",
    operands=(Operand("x"),),
    attrs=(Attr("perm", AttrKind.INTS, None),),
    traits=_MOVEMENT,
    axes=_axes_transpose,
    infer=_infer_transpose,
    content=content_moved,
    eval=lambda c, x: np.transpose(x, c.attrs["perm"]),
)


# -- squeeze and unsqueeze ----------------------------------------------------------------------


def _axes_of(node: Node) -> tuple[int, ...] | None:
    axes = node.static("axes")
    if axes is None or isinstance(axes, tuple):
        return axes
    return (axes,)


def _infer_squeeze(node: Node) -> Type:
    (x,), operand = operands_of(node, 1), node.inputs[1]
    shape = x.shape
    axes = _axes_of(node)
    if shape is None:
        return TensorType(x.dtype, None)
    if axes is None:
        if operand is not None:
            return TensorType(x.dtype, _unknown_rank(node, len(shape), -1))
        if not all(isinstance(dim, int) for dim in shape):
            return TensorType(x.dtype, None)  # a size that is 1 at run time goes too
        return TensorType(x.dtype, tuple(dim for dim in shape if dim != 1))
    rank = len(shape)
    gone = {normalize_axis(node, axis, rank) for axis in axes}
    for axis in gone:
        dim = shape[axis]
        if dim == 1:
            continue
        if isinstance(dim, int):
            raise node.error(f"axis {axis} has size {dim}, only size 1 can be squeezed")
        node.assume_equal(dim, 1, "squeeze")
    return TensorType(x.dtype, tuple([dim for i, dim in enumerate(shape) if i not in gone]))


def _unknown_rank(node: Node, rank: int, sign: int) -> Shape | None:
    """Returns fresh sizes when the length of the operand `axes` says the result's rank."""
    operand = node.operand("axes")
    if operand is None or operand.shape is None or len(operand.shape) > 1:
        return None
    count = operand.shape[0] if operand.shape else 1
    if not isinstance(count, int):
        return None
    return tuple(node.fresh_dim(0, i) for i in range(rank + sign * count))


def _axes_squeeze(node: Node) -> str | None:
    x, axes = node.inputs[0], _axes_of(node)
    if x is None or x.shape is None:
        return None
    rank = len(x.shape)
    if axes is None:
        if node.inputs[1] is not None or node.output.rank is None:
            return None
        axes = tuple(i for i, dim in enumerate(x.shape) if dim == 1)
    gone = {axis % rank for axis in axes}
    kept = " ".join(f"d{i}" for i in range(rank) if i not in gone)
    return data_rule(node, ones(rank, gone), kept)


def _eval_squeeze(c: EvalContext, x: Array, axes: Array | None = None) -> Array:
    gone = c.param("axes", axes)
    if gone is None:
        return np.squeeze(x)
    return np.squeeze(x, tuple(gone) if isinstance(gone, tuple) else (gone,))


def _content_squeeze(node: Node) -> Content | None:
    x = node.inputs[0]
    content = None if x is None else x.content
    if isinstance(content, tuple):
        if node.output.rank == 0 and len(content) == 1:
            return content[0]
        return content if node.output.rank == 1 else None
    if content is not None:
        return content
    return content_moved(node)


squeeze = OpSpec(
    name="squeeze",
    source="ONNX Squeeze-25",
    operands=(Operand("x"), Operand("axes", optional=True, either=AttrKind.INTS)),
    traits=_MOVEMENT,
    axes=_axes_squeeze,
    infer=_infer_squeeze,
    content=_content_squeeze,
    eval=_eval_squeeze,
)


def _infer_unsqueeze(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    shape = x.shape
    axes = _axes_of(node)
    if shape is None:
        return TensorType(x.dtype, None)
    if axes is None:
        return TensorType(x.dtype, _unknown_rank(node, len(shape), 1))
    if len(axes) == 1 and 0 <= axes[0] <= len(shape):
        axis = axes[0]
        return TensorType(x.dtype, (*shape[:axis], 1, *shape[axis:]))
    rank = len(shape) + len(axes)
    new = {normalize_axis(node, axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise node.error(f"axes {list(axes)} repeat an axis")
    rest = iter(shape)
    return TensorType(x.dtype, tuple([1 if i in new else next(rest) for i in range(rank)]))


def _axes_unsqueeze(node: Node) -> str | None:
    axes, rank = _axes_of(node), node.output.rank
    if axes is None or rank is None:
        return None
    new = {axis % rank for axis in axes}
    kept = " ".join(f"d{i}" for i in range(rank) if i not in new)
    return data_rule(node, kept, ones(rank, new))


def _content_unsqueeze(node: Node) -> Content | None:
    x = node.inputs[0]
    if x is None or x.content is None or node.output.rank != 1:
        return None
    return x.content if isinstance(x.content, tuple) else (x.content,)


unsqueeze = OpSpec(
    name="unsqueeze",
    source="ONNX Unsqueeze-25",
    operands=(Operand("x"), Operand("axes", optional=True, either=AttrKind.INTS)),
    traits=_MOVEMENT,
    axes=_axes_unsqueeze,
    infer=_infer_unsqueeze,
    content=_content_unsqueeze,
    eval=lambda c, x, axes=None: np.expand_dims(x, c.param("axes", axes)),
)

OPS: tuple[OpSpec, ...] = (reshape, transpose, squeeze, unsqueeze)
