"""Elements picked by index: gather, gather_elements, gather_nd."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import Dim, known_equal
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Content, Node
from regraft.ir.ops.moved import content_moved
from regraft.ir.ops.shapes import normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

_MOVEMENT = Trait.PURE | Trait.DATA_MOVEMENT
_OPERANDS = (Operand("x"), Operand("indices"))


# -- gather -------------------------------------------------------------------------------------


def _infer_gather(node: Node) -> Type:
    x, indices = operands_of(node, 2)
    if x.shape is None or indices.shape is None:
        return TensorType(x.dtype, None)
    axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    return TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _axes_gather(node: Node) -> str | None:
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.rank is None or indices.rank is None:
        return None
    axis = node.attrs["axis"] % x.rank
    before = [f"d{i}" for i in range(axis)]
    after = [f"d{i}" for i in range(axis + 1, x.rank)]
    index = [f"i{i}" for i in range(indices.rank)]
    return (
        f"{' '.join([*before, 'v!', *after])}, {' '.join(index)} -> "
        f"{' '.join([*before, *index, *after])}"
    )


def _content_gather(node: Node) -> Content | None:
    x, indices = node.inputs[:2]
    data = None if x is None else x.content
    if not isinstance(data, tuple):
        return content_moved(node)
    where = None if indices is None else indices.content
    size = len(data)
    if where is None or isinstance(where, Dim):
        return None
    if not isinstance(where, tuple):
        return data[where] if -size <= where < size else None
    if any(isinstance(i, Dim) or not -size <= i < size for i in where):
        return None
    return tuple([data[i] for i in where])  # type: ignore[index]  # no Dim is left


gather = OpSpec(
    name="gather",
    source="ONNX Gather-13",
    operands=_OPERANDS,
    attrs=(Attr("axis", AttrKind.INT, 0),),
    traits=_MOVEMENT,
    axes=_axes_gather,
    infer=_infer_gather,
    content=_content_gather,
    eval=lambda c, x, indices: np.take(x, indices.astype(np.int64), c.attrs["axis"]),
)


# -- gather_elements ----------------------------------------------------------------------------


def _infer_gather_elements(node: Node) -> Type:
    x, indices = operands_of(node, 2)
    if x.rank is not None and indices.rank is not None and x.rank != indices.rank:
        raise node.error(f"data has {x.rank} axes and indices have {indices.rank}")
    return TensorType(x.dtype, indices.shape)


def _axes_gather_elements(node: Node) -> str | None:
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.shape is None or indices.shape is None:
        return None
    axis = node.attrs["axis"] % len(x.shape)
    left, right = [], []
    for i, (size, picked) in enumerate(zip(x.shape, indices.shape, strict=True)):
        if i == axis:
            left.append("v!")
            right.append(f"d{i}")
        elif known_equal(size, picked):
            left.append(f"d{i}")
            right.append(f"d{i}")
        else:  # the indices stand for the first positions of a longer axis
            left.append(f"x{i}!")
            right.append(f"i{i}!")
    return f"{' '.join(left)}, {' '.join(right)} -> {' '.join(right)}"


def element_index(shape: tuple[int, ...], indices: Array, axis: int) -> tuple[Array, ...]:
    """Returns the index arrays that `indices` along `axis` of a tensor of `shape` stand for."""
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    # both ends count: -1 is the last position
    grid[axis] = np.where(indices < 0, indices + shape[axis], indices).astype(np.int64)
    return tuple(grid)


def _eval_gather_elements(c: EvalContext, x: Array, indices: Array) -> Array:
    picked: Array = x[element_index(x.shape, indices, c.attrs["axis"])]
    return picked


gather_elements = OpSpec(
    name="gather_elements",
    source="ONNX GatherElements-13",
    operands=_OPERANDS,
    attrs=(Attr("axis", AttrKind.INT, 0),),
    traits=_MOVEMENT,
    axes=_axes_gather_elements,
    infer=_infer_gather_elements,
    content=content_moved,
    eval=_eval_gather_elements,
)


# -- gather_nd ----------------------------------------------------------------------------------


def _infer_gather_nd(node: Node) -> Type:
    x, indices = operands_of(node, 2)
    if x.shape is None or indices.shape is None:
        return TensorType(x.dtype, None)
    batch = node.attrs["batch_dims"]
    depth = indices.shape[-1]
    if isinstance(depth, Dim):
        return TensorType(x.dtype, None)
    if batch + depth > len(x.shape):
        raise node.error(f"indices address {batch + depth} axes, data has {len(x.shape)}")
    return TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch + depth :]))


def _axes_gather_nd(node: Node) -> str | None:
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.shape is None or indices.shape is None:
        return None
    batch, depth = node.attrs["batch_dims"], indices.shape[-1]
    if isinstance(depth, Dim):
        return None
    shared = [f"b{i}" for i in range(batch)]
    addressed = [f"v{i}!" for i in range(depth)]
    rest = [f"d{i}" for i in range(batch + depth, len(x.shape))]
    where = [f"i{i}" for i in range(batch, len(indices.shape) - 1)]
    return (
        f"{' '.join(shared + addressed + rest)}, {' '.join([*shared, *where, 'k!'])} -> "
        f"{' '.join(shared + where + rest)}"
    )


def _eval_gather_nd(c: EvalContext, x: Array, indices: Array) -> Array:
    batch = c.attrs["batch_dims"]
    where = np.moveaxis(indices.astype(np.int64), -1, 0)
    grid = [
        np.arange(x.shape[i]).reshape([-1 if j == i else 1 for j in range(indices.ndim - 1)])
        for i in range(batch)
    ]
    picked: Array = x[(*grid, *where)]
    return picked


gather_nd = OpSpec(
    name="gather_nd",
    source="ONNX GatherND-13",
    operands=_OPERANDS,
    attrs=(Attr("batch_dims", AttrKind.INT, 0),),
    traits=_MOVEMENT,
    axes=_axes_gather_nd,
    infer=_infer_gather_nd,
    content=content_moved,
    eval=_eval_gather_nd,
)

OPS: tuple[OpSpec, ...] = (gather, gather_elements, gather_nd)
