"""Positions chosen by value: top_k, arg_max, arg_min, one_hot, compress, non_zero, unique."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim, DimLike
from regraft.ir.evaluate import EvalContext
from regraft.ir.graph import Node
from regraft.ir.ops.movement_rules import data_rule, labels, pinned_rule
from regraft.ir.ops.shapes import normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]

_CHOICE = Trait.PURE | Trait.DISCRETE


def _scalar(static: DimLike | tuple[DimLike, ...] | None) -> DimLike | None:
    return static[0] if isinstance(static, tuple) else static


# -- top_k --------------------------------------------------------------------------------------


def _infer_top_k(node: Node) -> tuple[Type, Type]:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return TensorType(None if x is None else x.dtype, None), TensorType(DType.I64, None)
    axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    k = _scalar(node.static("k"))
    shape = list(x.shape)
    if k is None:
        hi = shape[axis]
        k = node.fresh_dim(0, axis, hi=hi if isinstance(hi, int) else None)
    shape[axis] = k
    return TensorType(x.dtype, tuple(shape)), TensorType(DType.I64, tuple(shape))


def _axes_top_k(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    axis = (node.attrs["axis"] % rank,)
    picked = labels(rank, axis, prefix="y")
    return data_rule(node, labels(rank, axis), f"{picked}, {picked}")


def _eval_top_k(c: EvalContext, x: Array, k: Array | None = None) -> tuple[Array, Array]:
    axis, count = c.attrs["axis"], c.attrs["k"] if k is None else int(k.item())
    # equal values keep the order of their positions
    keys = x if not c.attrs["largest"] else np.flip(x, axis)
    order = np.argsort(keys, axis, kind="stable")
    if c.attrs["largest"]:
        order = x.shape[axis] - 1 - np.flip(order, axis)
    where = np.take(order, range(count), axis)
    return np.take_along_axis(x, where, axis), where.astype(np.int64)


top_k = OpSpec(
    name="top_k",
    source="ONNX TopK-24",
    operands=(Operand("x"), Operand("k", optional=True, either=AttrKind.DIM)),
    results=("values", "indices"),
    attrs=(
        Attr("axis", AttrKind.INT, -1),
        Attr("largest", AttrKind.BOOL, True),
        Attr("sorted", AttrKind.BOOL, True),
    ),
    traits=_CHOICE,
    axes=_axes_top_k,
    infer=_infer_top_k,
    eval=_eval_top_k,
)


# -- arg_max, arg_min ---------------------------------------------------------------------------


def _infer_arg(node: Node) -> Type:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return TensorType(DType.I64, None)
    axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    kept = (1,) if node.attrs["keepdims"] else ()
    return TensorType(DType.I64, (*x.shape[:axis], *kept, *x.shape[axis + 1 :]))


def _axes_arg(node: Node) -> str | None:
    rank = None if node.inputs[0] is None else node.inputs[0].rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank
    kept = ["1"] if node.attrs["keepdims"] else []
    right = [f"d{i}" for i in range(axis)] + kept + [f"d{i}" for i in range(axis + 1, rank)]
    return f"{labels(rank, (axis,))} -> {' '.join(right)}"


def _eval_arg(c: EvalContext, x: Array) -> Array:
    axis, pick = c.attrs["axis"], np.argmax if c.node.op is arg_max else np.argmin
    if c.attrs["select_last_index"]:
        last = x.shape[axis] - 1
        index = last - pick(np.flip(x, axis), axis, keepdims=c.attrs["keepdims"])
    else:
        index = pick(x, axis, keepdims=c.attrs["keepdims"])
    return np.asarray(index, np.int64)


def _arg(name: str, source: str) -> OpSpec:
    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("x"),),
        attrs=(
            Attr("axis", AttrKind.INT, 0),
            Attr("keepdims", AttrKind.BOOL, True),
            Attr("select_last_index", AttrKind.BOOL, False),
        ),
        traits=_CHOICE,
        axes=_axes_arg,
        infer=_infer_arg,
        eval=_eval_arg,
    )


arg_max = _arg("arg_max", "ONNX ArgMax-13")
arg_min = _arg("arg_min", "ONNX ArgMin-13")


# -- one_hot ------------------------------------------------------------------------------------


def _infer_one_hot(node: Node) -> Type:
    indices, values = node.inputs[0], node.operand("values")
    dtype = None if values is None else values.dtype
    if indices is None or indices.shape is None:
        return TensorType(dtype, None)
    axis = normalize_axis(node, node.attrs["axis"], len(indices.shape) + 1)
    depth = _scalar(node.static("depth"))
    if depth is None:
        constant = constant_of(node.operand("depth"))
        depth = node.fresh_dim(0, axis) if constant is None else int(constant.reshape(-1)[0])
    return TensorType(dtype, (*indices.shape[:axis], depth, *indices.shape[axis:]))


def _axes_one_hot(node: Node) -> str | None:
    rank = node.output.rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank
    left = " ".join(f"d{i}" for i in range(rank) if i != axis)
    return f"{left}, ., . -> {labels(rank, (axis,))}"


def _eval_one_hot(c: EvalContext, indices: Array, depth: Array | None, values: Array) -> Array:
    size = c.attrs["depth"]
    if size is None:
        if depth is None:
            raise ValueError("one_hot without depth")
        size = int(depth.reshape(-1)[0])
    rank = indices.ndim + 1
    axis = c.attrs["axis"] % rank
    where = np.expand_dims(indices.astype(np.int64), axis)
    where = np.where(where < 0, where + size, where)
    positions = np.arange(size).reshape([-1 if i == axis else 1 for i in range(rank)])
    on = where == positions
    result: Array = np.where(on, values[1], values[0])
    return result.astype(values.dtype, copy=False)


one_hot = OpSpec(
    name="one_hot",
    source="ONNX OneHot-11",
    operands=(
        Operand("indices"),
        Operand("depth", optional=True, either=AttrKind.DIM),
        Operand("values"),  # [off, on]
    ),
    attrs=(Attr("axis", AttrKind.INT, -1),),
    traits=Trait.PURE | Trait.RAW,
    axes=_axes_one_hot,
    infer=_infer_one_hot,
    eval=_eval_one_hot,
)


# -- compress, non_zero, unique -----------------------------------------------------------------


def _infer_compress(node: Node) -> Type:
    (x,), axis = operands_of(node, 1), node.attrs["axis"]
    if axis is None:
        return TensorType(x.dtype, (node.fresh_dim(0, 0),))
    if x.shape is None:
        return TensorType(x.dtype, None)
    axis = normalize_axis(node, axis, len(x.shape))
    hi = x.shape[axis]
    size = node.fresh_dim(0, axis, hi=hi if isinstance(hi, int) else None)
    return TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def _axes_compress(node: Node) -> str | None:
    axis, rank = node.attrs["axis"], node.output.rank
    if axis is None or rank is None:
        return None
    return pinned_rule(node, rank, (axis % rank,))


def _eval_compress(c: EvalContext, x: Array, condition: Array) -> Array:
    axis = c.attrs["axis"]
    return np.compress(condition, x, axis)


compress = OpSpec(
    name="compress",
    source="ONNX Compress-11",
    operands=(Operand("x"), Operand("condition")),
    attrs=(Attr("axis", AttrKind.INT, None),),  # None: of the flattened tensor
    traits=Trait.PURE | Trait.DATA_MOVEMENT,
    axes=_axes_compress,
    infer=_infer_compress,
    eval=_eval_compress,
)


def _infer_non_zero(node: Node) -> Type:
    x = node.inputs[0]
    rank = None if x is None else x.rank
    total = None if x is None or not isinstance(x.type, TensorType) else x.type.num_elements
    size: DimLike = (
        node.fresh_dim(0, 0) if rank is None else max(rank, 1)
    )  # a scalar counts as one axis
    found = node.fresh_dim(0, 1, hi=None if isinstance(total, Dim) else total)
    return TensorType(DType.I64, (size, found))


non_zero = OpSpec(
    name="non_zero",
    source="ONNX NonZero-13",
    operands=(Operand("x"),),
    traits=_CHOICE | Trait.RAW,
    infer=_infer_non_zero,
    eval=lambda c, x: np.array(np.nonzero(np.atleast_1d(x)), np.int64),
)


def _infer_unique(node: Node) -> list[Type]:
    (x,), axis = operands_of(node, 1), node.attrs["axis"]
    num = len(node.outputs)
    values = TensorType(x.dtype, None)
    found: DimLike | None = None
    total: DimLike | None = None
    if axis is None:
        found = node.fresh_dim(0, 0)
        values = TensorType(x.dtype, (found,))
        total = x.type.num_elements if isinstance(x.type, TensorType) else None
    elif x.shape is not None:
        axis = normalize_axis(node, axis, len(x.shape))
        found = node.fresh_dim(0, axis)
        values = TensorType(x.dtype, (*x.shape[:axis], found, *x.shape[axis + 1 :]))
        total = x.shape[axis]
    if found is None and num > 1:
        found = node.fresh_dim(1, 0)
    if total is None and num > 2:
        total = node.fresh_dim(2, 0)
    index = TensorType(DType.I64, None if found is None else (found,))
    inverse = TensorType(DType.I64, None if total is None else (total,))
    types: list[Type] = [values, index, inverse, index]
    return types[:num]


def _eval_unique(c: EvalContext, x: Array) -> tuple[Array, ...]:
    axis = c.attrs["axis"]
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    if not c.attrs["sorted"]:  # in order of first occurrence
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        values = np.take(values, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    results = (values, first, inverse.reshape(-1), counts)
    return tuple(
        result if i == 0 else np.asarray(result, np.int64)
        for i, result in enumerate(results[: len(c.node.outputs)])
    )


unique = OpSpec(
    name="unique",
    source="ONNX Unique-11",
    operands=(Operand("x"),),
    results=("values", "first?", "inverse?", "counts?"),
    attrs=(Attr("axis", AttrKind.INT, None), Attr("sorted", AttrKind.BOOL, True)),
    traits=_CHOICE | Trait.RAW,
    infer=_infer_unique,
    eval=_eval_unique,
)

OPS: tuple[OpSpec, ...] = (top_k, arg_max, arg_min, one_hot, compress, non_zero, unique)
