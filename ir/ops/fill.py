"""Tensors made from sizes: range, constant_of_shape, eye_like; and trilu, a triangle mask."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from regraft.ir.constants import MAX_CONTENT, constant_of
from regraft.ir.dims import DimLike, ceildiv, dim_max
from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import at_least, in_dtype, whole_content
from regraft.ir.ops.shapes import infer_same
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type, dtype_of

Array = np.ndarray[Any, Any]

_RANGE_PARAMS = ("start", "limit", "delta")


def _scalar(content: Any) -> DimLike | None:
    # one element of rank 1 stands for a scalar in some exporters' files
    if isinstance(content, tuple):
        return content[0] if len(content) == 1 else None
    return content  # type: ignore[no-any-return]  # content is a size


def _range_sizes(node: Node) -> tuple[DimLike, DimLike, DimLike] | None:
    sizes: list[DimLike] = []
    for name in _RANGE_PARAMS:
        size = _scalar(node.attrs[name])
        operand = node.operand(name)
        if size is None and operand is not None:
            size = _scalar(whole_content(operand))
        if size is None:
            return None
        sizes.append(size)
    start, limit, delta = sizes
    return start, limit, delta


def _range_length(node: Node) -> DimLike | None:
    sizes = _range_sizes(node)
    if sizes is not None:
        start, limit, delta = sizes
        if at_least(delta, 1):
            return dim_max(ceildiv(limit - start, delta), 0)
        return dim_max(ceildiv(start - limit, -delta), 0) if at_least(-delta, 1) else None
    values = []
    for name in _RANGE_PARAMS:
        static = node.attrs[name]
        array = constant_of(node.operand(name), 8) if static is None else np.asarray(static)
        if array is None or array.dtype == object or array.size != 1:
            return None
        values.append(array.reshape(()))
    if values[2] == 0 or not all(np.isfinite(value) for value in values):
        return None
    return _num_steps(*values)


def _num_steps(start: Array, limit: Array, delta: Array) -> int:
    # the difference is rounded to the element type, the quotient is not
    return max(0, ceil(float(limit - start) / float(delta)))


def _infer_range(node: Node) -> Type:
    dtype: DType | None = node.attrs["dtype"]
    if dtype is None:
        dtype = next((v.dtype for v in node.inputs if v is not None and v.dtype is not None), None)
    length = _range_length(node)
    return TensorType(dtype, (node.fresh_dim(0, 0) if length is None else length,))


def _content_range(node: Node) -> Content | None:
    shape, dtype, sizes = node.output.shape, node.output.dtype, _range_sizes(node)
    if shape is None or dtype is None or sizes is None:
        return None
    length = shape[0]
    if not isinstance(length, int) or length > MAX_CONTENT:
        return None
    start, _, delta = sizes
    items = tuple(in_dtype(start + i * delta, dtype) for i in range(length))
    known = tuple(item for item in items if item is not None)
    return known if len(known) == len(items) else None


def _eval_range(c: Any, *operands: Array | None) -> Any:
    start, limit, delta = (
        np.asarray(c.param(name, operand)).reshape(())
        for name, operand in zip(_RANGE_PARAMS, operands, strict=True)
    )
    declared = c.dtype()
    wide = start.dtype
    if declared is not None:
        is_half = declared in (DType.F16, DType.BF16)
        wide = np.dtype(np.float32) if is_half else declared.numpy
        if declared.is_float and c.oracle:
            wide = np.dtype(np.float64)
    # start + i * delta rather than a running sum, which drifts in floats
    steps = np.arange(_num_steps(start, limit, delta)).astype(wide)
    return (start.astype(wide) + steps * delta.astype(wide)).astype(wide)


range_ = OpSpec(
    name="range",
    source="ONNX Range-27 (stash_type 1)",
    operands=tuple(Operand(name, either=AttrKind.DIM) for name in _RANGE_PARAMS),
    attrs=(Attr("dtype", AttrKind.DTYPE, None),),  # None: that of the operands
    infer=_infer_range,
    content=_content_range,
    eval=_eval_range,
)


def _infer_constant_of_shape(node: Node) -> Type:
    dtype = dtype_of(node.attrs["value"])
    sizes = node.static("shape")
    if sizes is not None:
        if any(isinstance(size, int) and size < 0 for size in sizes):
            raise node.error(f"a size is negative: {list(map(str, sizes))}")
        return TensorType(dtype, tuple(sizes))
    operand = node.operand("shape")
    rank = operand.shape[0] if operand is not None and operand.shape else None
    if not isinstance(rank, int):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(node.fresh_dim(0, axis) for axis in range(rank)))


def _content_constant_of_shape(node: Node) -> Content | None:
    shape, value = node.output.shape, node.attrs["value"]
    if shape is None or len(shape) > 1 or value.dtype.kind not in "iub":
        return None
    item = int(value.reshape(()))
    if not shape:
        return item
    length = shape[0]
    return (item,) * length if isinstance(length, int) and length <= MAX_CONTENT else None


constant_of_shape = OpSpec(
    name="constant_of_shape",
    source="ONNX ConstantOfShape-25",
    operands=(Operand("shape", either=AttrKind.DIMS),),
    attrs=(Attr("value", AttrKind.ARRAY),),  # one element
    traits=Trait.PURE | Trait.RAW,
    infer=_infer_constant_of_shape,
    content=_content_constant_of_shape,
    eval=lambda c, shape: np.full(c.param("shape", shape), c.attrs["value"].reshape(())),
)


def _infer_eye_like(node: Node) -> Type:
    x = node.inputs[0]
    if x is None:
        raise node.error("the first operand is missing")
    return TensorType(node.attrs["dtype"] or x.dtype, x.shape)


eye_like = OpSpec(
    name="eye_like",
    source="ONNX EyeLike-22",
    operands=(Operand("x"),),  # only its shape counts
    attrs=(
        Attr("dtype", AttrKind.DTYPE, None),  # None: that of x
        Attr("k", AttrKind.INT, 0),  # which diagonal; positive above the main one
    ),
    traits=Trait.PURE | Trait.RAW,
    axes="m! n! -> m! n!",
    infer=_infer_eye_like,
    eval=lambda c, x: np.eye(x.shape[0], x.shape[1], c.attrs["k"]).astype(c.dtype().numpy),
)


def _eval_trilu(c: Any, x: Array, operand: Array | None) -> Array:
    static = c.param("k", operand)
    k = 0 if static is None else int(np.reshape(static, ()))
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    kept = columns - rows >= k if c.attrs["upper"] else columns - rows <= k
    return np.where(kept, x, np.zeros((), x.dtype))


trilu = OpSpec(
    name="trilu",
    source="ONNX Trilu-14",
    # k: which diagonal bounds the triangle that is kept; absent means the main one
    operands=(Operand("x"), Operand("k", optional=True, either=AttrKind.INT)),
    attrs=(Attr("upper", AttrKind.BOOL, True),),
    traits=Trait.PURE | Trait.RAW,
    axes="*b m! n!, . -> *b m! n!",
    infer=infer_same,
    eval=_eval_trilu,
)

OPS: tuple[OpSpec, ...] = (range_, constant_of_shape, eye_like, trilu)
