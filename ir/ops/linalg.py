"""Linear algebra: matmul, gemm, det.

`matmul` followed by `add` is the canonical linear layer of any rank. `gemm` is kept for rank 2,
where its transposes and factors are free in every runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops.shapes import broadcast, operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.streaming import is_streamed, matmul_streamed
from regraft.ir.types import DType, TensorType, Type

Array = np.ndarray[Any, Any]


def first_dtype(*values: Value | None) -> DType | None:
    """Returns the first known element type."""
    for value in values:
        if value is not None and value.dtype is not None:
            return value.dtype
    return None


def _matmul_axes(node: Node) -> str | None:
    ranks = [value.rank for value in operands_of(node, 2)]
    match ranks:
        case [None, _] | [_, None]:
            return None
        case [1, 1]:
            return "~k, ~k -> "
        case [1, _]:
            return "~k, *b ~k n -> *b n"
        case [_, 1]:
            return "*b m ~k, ~k -> *b m"
        case _:
            return "*b m ~k, *b ~k n -> *b m n"


def _infer_matmul(node: Node) -> Type:
    a, b = operands_of(node, 2)
    dtype = first_dtype(a, b)
    left, right = a.shape, b.shape
    if left is None or right is None:
        return TensorType(dtype, None)
    if not left or not right:
        raise node.error("an operand has rank 0", hint="matmul takes vectors, matrices and stacks")
    same_size(node, left[-1], right[-2 if len(right) > 1 else -1], "the contracted axes")
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    batch = left[:-2]
    if right[:-2] != batch:
        batch = broadcast(node, batch, right[:-2]) or ()
    return TensorType(dtype, (*batch, *rows, *columns))


def _product(a: Array, b: Array) -> Array:
    return matmul_streamed(a, b) if is_streamed(b) else np.matmul(a, b)


matmul = OpSpec(
    name="matmul",
    source="ONNX MatMul-13",
    operands=(Operand("a"), Operand("b")),
    axes=_matmul_axes,
    infer=_infer_matmul,
    eval=lambda c, a, b: _product(a, b),
)


def _gemm_axes(node: Node) -> str | None:
    a = "~k m" if node.attrs["trans_a"] else "m ~k"
    b = "n ~k" if node.attrs["trans_b"] else "~k n"
    bias = node.inputs[2]
    if bias is None:
        return f"{a}, {b} -> m n"
    if bias.rank is None:
        return None
    return f"{a}, {b}, {('', 'n?', 'm? n?')[bias.rank]} -> m n"


def _infer_gemm(node: Node) -> Type:
    a, b = operands_of(node, 2)
    dtype = first_dtype(a, b)
    rows: DimLike | None = None
    columns: DimLike | None = None
    inner: DimLike | None = None
    for value, trans, name in ((a, node.attrs["trans_a"], "a"), (b, node.attrs["trans_b"], "b")):
        shape = value.shape
        if shape is None:
            continue
        if len(shape) != 2:
            raise node.error(f"`{name}` must have rank 2, it has rank {len(shape)}")
        outer, contracted = (shape[1], shape[0]) if trans == (name == "a") else shape
        if name == "a":
            rows = outer
        else:
            columns = outer
        if inner is not None:
            same_size(node, inner, contracted, "the contracted axes")
        inner = contracted
    shape = (
        node.fresh_dim(0, 0) if rows is None else rows,
        node.fresh_dim(0, 1) if columns is None else columns,
    )
    return TensorType(dtype, shape)


def _eval_gemm(c: Any, a: Array, b: Array, bias: Array | None) -> Array:
    attrs = c.attrs
    out = _product(a.T if attrs["trans_a"] else a, b.T if attrs["trans_b"] else b)
    if attrs["alpha"] != 1:
        out = (attrs["alpha"] * out).astype(out.dtype)
    if bias is not None and attrs["beta"] != 0:
        out = out + (bias if attrs["beta"] == 1 else (attrs["beta"] * bias).astype(out.dtype))
    return out


gemm = OpSpec(
    name="gemm",
    source="ONNX Gemm-13",
    # alpha * a @ b + beta * bias; the bias broadcasts to the result
    operands=(Operand("a"), Operand("b"), Operand("bias", optional=True)),
    attrs=(
        Attr("alpha", AttrKind.FLOAT, 1.0),
        Attr("beta", AttrKind.FLOAT, 1.0),
        Attr("trans_a", AttrKind.BOOL, False),
        Attr("trans_b", AttrKind.BOOL, False),
    ),
    axes=_gemm_axes,
    infer=_infer_gemm,
    eval=_eval_gemm,
)


def _infer_det(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    if x.shape is None:
        return TensorType(x.dtype, None)
    if len(x.shape) < 2:
        raise node.error(f"rank {len(x.shape)} is no matrix")
    same_size(node, x.shape[-1], x.shape[-2], "the rows and columns")
    return TensorType(x.dtype, x.shape[:-2])


def _flops_det(node: Node) -> DimLike | None:
    shape = operands_of(node, 1)[0].shape
    if shape is None:
        return None
    # elimination takes 2/3 n^3 operations; sizes are integers, so that this rounds up to n^3
    return product(shape) * shape[-1]


det = OpSpec(
    name="det",
    source="ONNX Det-22",
    operands=(Operand("x"),),
    traits=Trait.PURE,
    axes="*b i! j! -> *b",
    infer=_infer_det,
    eval=lambda c, x: np.linalg.det(x),
    flops=_flops_det,
)

OPS: tuple[OpSpec, ...] = (matmul, gemm, det)
