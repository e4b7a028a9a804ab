"""Elements written by index: scatter_elements, scatter_nd, tensor_scatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.dims import Dim, known_equal
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Content, Node
from regraft.ir.ops.gathering import element_index
from regraft.ir.ops.moved import content_moved
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait

Array = np.ndarray[Any, Any]

_SCATTER = (Operand("x"), Operand("indices"), Operand("updates"))

_REDUCE: dict[str, Callable[..., Any]] = {
    "add": np.add.at,
    "mul": np.multiply.at,
    "min": np.minimum.at,
    "max": np.maximum.at,
}


def _write(x: Array, where: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    """Returns a copy of `x` with `updates` stored, or combined one after the other."""
    result = x.copy()
    if reduction == "none":
        result[where] = updates
    else:
        _REDUCE[reduction](result, where, updates)
    return result


def _content_scatter(node: Node) -> Content | None:
    return content_moved(node) if node.attrs["reduction"] == "none" else None


# -- scatter_elements ---------------------------------------------------------------------------


def _axes_scatter_elements(node: Node) -> str | None:
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.shape is None or indices.shape is None:
        return None
    axis = node.attrs["axis"] % len(x.shape)
    left, right = [], []
    for i, (size, written) in enumerate(zip(x.shape, indices.shape, strict=True)):
        tied = i != axis and known_equal(size, written)
        left.append(f"d{i}" if tied else f"x{i}!")
        right.append(f"d{i}" if tied else f"i{i}!")
    data, index = " ".join(left), " ".join(right)
    return f"{data}, {index}, {index} -> {data}"


def _eval_scatter_elements(c: EvalContext, x: Array, indices: Array, updates: Array) -> Array:
    where = element_index(x.shape, indices, c.attrs["axis"])
    return _write(x, where, updates, c.attrs["reduction"])


scatter_elements = OpSpec(
    name="scatter_elements",
    source="ONNX ScatterElements-18",
    operands=_SCATTER,
    # reduction: none, add, mul, min, max
    attrs=(Attr("axis", AttrKind.INT, 0), Attr("reduction", AttrKind.STR, "none")),
    traits=Trait.PURE,
    axes=_axes_scatter_elements,
    infer=infer_same,
    content=_content_scatter,
    eval=_eval_scatter_elements,
)


# -- scatter_nd ---------------------------------------------------------------------------------


def _axes_scatter_nd(node: Node) -> str | None:
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.shape is None or indices.shape is None:
        return None
    depth = indices.shape[-1]
    if isinstance(depth, Dim):
        return None
    data = " ".join(f"v{i}!" if i < depth else f"d{i}" for i in range(len(x.shape)))
    where = [f"i{i}!" for i in range(len(indices.shape) - 1)]
    rest = [f"d{i}" for i in range(depth, len(x.shape))]
    return f"{data}, {' '.join([*where, 'k!'])}, {' '.join(where + rest)} -> {data}"


def _eval_scatter_nd(c: EvalContext, x: Array, indices: Array, updates: Array) -> Array:
    where = tuple(np.moveaxis(indices.astype(np.int64), -1, 0))
    return _write(x, where, updates, c.attrs["reduction"])


scatter_nd = OpSpec(
    name="scatter_nd",
    source="ONNX ScatterND-18",
    operands=_SCATTER,
    attrs=(Attr("reduction", AttrKind.STR, "none"),),
    traits=Trait.PURE,
    axes=_axes_scatter_nd,
    infer=infer_same,
    content=_content_scatter,
    eval=_eval_scatter_nd,
)


# -- tensor_scatter -----------------------------------------------------------------------------


def _axes_tensor_scatter(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank
    past = " ".join("s!" if i == axis else f"d{i}" for i in range(rank))
    update = " ".join("t!" if i == axis else f"d{i}" for i in range(rank))
    return f"{past}, {update}, d0 -> {past}"


def _eval_tensor_scatter(
    c: EvalContext, past: Array, update: Array, write_indices: Array | None
) -> Array:
    axis = c.attrs["axis"] % past.ndim
    result = np.moveaxis(past, axis, 1).copy()
    rows = np.moveaxis(update, axis, 1)
    starts = np.zeros(len(past), np.int64) if write_indices is None else write_indices
    for row, new, start in zip(result, rows, starts, strict=True):
        where = np.arange(start, start + len(new))
        row[where % len(row) if c.attrs["mode"] == "circular" else where] = new
    return np.moveaxis(result, 1, axis)


tensor_scatter = OpSpec(
    name="tensor_scatter",
    source="ONNX TensorScatter-24",
    operands=(Operand("past"), Operand("update"), Operand("write_indices", optional=True)),
    # mode: linear, circular
    attrs=(Attr("axis", AttrKind.INT, -2), Attr("mode", AttrKind.STR, "linear")),
    traits=Trait.PURE | Trait.DATA_MOVEMENT,
    axes=_axes_tensor_scatter,
    infer=infer_same,
    eval=_eval_tensor_scatter,
)

OPS: tuple[OpSpec, ...] = (scatter_elements, scatter_nd, tensor_scatter)
