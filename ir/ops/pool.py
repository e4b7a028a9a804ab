"""Pooling: maximum, average and p-norm over windows, and the same over whole planes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Node
from regraft.ir.ops.windows import (
    WINDOW_ATTRS,
    Sizes,
    Windows,
    pad_for_windows,
    spatial_labels,
    taps,
    window_counts,
    windows_of,
)
from regraft.ir.opspec import Attr, AttrKind, Eval, Operand, OpSpec, Trait
from regraft.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]

_X = (Operand("x"),)
_POOL_ATTRS = (
    Attr("kernel", AttrKind.INTS),
    *WINDOW_ATTRS,
    Attr("ceil_mode", AttrKind.BOOL, False),
)


def _infer_pool(node: Node) -> TensorType:
    x = node.inputs[0]
    if x is None:
        raise node.error("x is missing")
    if x.shape is None:
        return TensorType(x.dtype, None)
    kernel = node.attrs["kernel"]
    if len(x.shape) != len(kernel) + 2:
        raise node.error(f"x has rank {len(x.shape)}, kernel {kernel} needs {len(kernel) + 2}")
    counts = window_counts(windows_of(node.attrs, kernel), x.shape[2:])
    return TensorType(x.dtype, (*x.shape[:2], *counts))


def _axes_pool(node: Node) -> str:
    rank = len(node.attrs["kernel"])
    return f"n c {spatial_labels('s', rank)} -> n c {spatial_labels('t', rank)}"


def _flops_pool(node: Node) -> DimLike | None:
    """Counts the taps of every result; those beside an image that is smaller are none."""
    x, shape = node.inputs[0], node.output.shape
    if x is None or x.shape is None or shape is None:
        return None
    sizes = x.shape[2:]
    taps_inside = (
        min(tap, size) if isinstance(size, int) else tap
        for tap, size in zip(node.attrs["kernel"], sizes, strict=True)
    )
    return product(shape) * product(taps_inside)


def _lowest(dtype: np.dtype[Any]) -> float | int:
    return -np.inf if dtype.kind == "f" else int(np.iinfo(dtype).min)


def _pool_windows(c: EvalContext) -> tuple[Windows, Sizes]:
    kernel: Sizes = c.attrs["kernel"]
    return windows_of(c.attrs, kernel), kernel


def _eval_max(c: EvalContext, x: Array) -> Array:
    windows, kernel = _pool_windows(c)
    padded, _, _, counts = pad_for_windows(x, windows, _lowest(x.dtype))
    out = np.full((*x.shape[:2], *counts), _lowest(x.dtype), x.dtype)
    for _, view in taps(padded, kernel, windows.strides, windows.dilations, counts):
        np.maximum(out, view, out=out)
    return out


max_pool = OpSpec(
    name="max_pool",
    source="ONNX MaxPool-22",
    operands=_X,
    attrs=_POOL_ATTRS,
    axes=_axes_pool,
    infer=_infer_pool,
    eval=_eval_max,
    flops=_flops_pool,
)


def _infer_max_with_indices(node: Node) -> tuple[Type, Type]:
    out = _infer_pool(node)
    return out, out.with_dtype(DType.I64)


def _axes_max_with_indices(node: Node) -> str:
    # an index counts the elements of the whole tensor, so that no position of any axis can go
    rank = len(node.attrs["kernel"])
    t = spatial_labels("t", rank)
    return f"n! c! {spatial_labels('s', rank)} -> n! c! {t}, n! c! {t}"


def _eval_max_with_indices(c: EvalContext, x: Array) -> tuple[Array, Array]:
    windows, kernel = _pool_windows(c)
    padded, begin, _, counts = pad_for_windows(x, windows, _lowest(x.dtype))
    out = np.full((*x.shape[:2], *counts), _lowest(x.dtype), x.dtype)
    spatial = x.shape[2:]
    steps = [1] * len(spatial)
    order = range(1, len(spatial)) if c.attrs["column_major"] else range(len(spatial) - 2, -1, -1)
    for axis in order:
        near = axis - 1 if c.attrs["column_major"] else axis + 1
        steps[axis] = steps[near] * spatial[near]
    indices = np.zeros(out.shape, np.int64)
    found = np.zeros(out.shape, bool)
    for tap, view in taps(padded, kernel, windows.strides, windows.dilations, counts):
        here = np.zeros(counts, np.int64)
        inside = np.ones(counts, bool)
        for axis, (t, d, s, b) in enumerate(
            zip(tap, windows.dilations, windows.strides, begin, strict=True)
        ):
            shape = [1] * len(counts)
            shape[axis] = counts[axis]
            pos = (np.arange(counts[axis]) * s + t * d - b).reshape(shape)
            here = here + pos * steps[axis]
            inside = inside & (pos >= 0) & (pos < spatial[axis])
        better = inside & (~found | (view > out))
        out = np.where(better, view, out)
        indices = np.where(better, here, indices)
        found |= better
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64) * product(spatial)
    return out, indices + planes.reshape(*x.shape[:2], *(1,) * len(counts))


max_pool_with_indices = OpSpec(
    name="max_pool_with_indices",
    source="ONNX MaxPool-22 (second result)",
    operands=_X,
    results=("out", "indices"),
    attrs=(*_POOL_ATTRS, Attr("column_major", AttrKind.BOOL, False)),
    traits=Trait.PURE | Trait.DISCRETE,
    axes=_axes_max_with_indices,
    infer=_infer_max_with_indices,
    eval=_eval_max_with_indices,
    flops=_flops_pool,
)


def _tap_sums(c: EvalContext, x: Array) -> tuple[Array, Array]:
    """Returns the sum over each window, and how many of its taps count."""
    windows, kernel = _pool_windows(c)
    padded, begin, end, counts = pad_for_windows(x, windows)
    out = np.zeros((*x.shape[:2], *counts), x.dtype)
    for _, view in taps(padded, kernel, windows.strides, windows.dilations, counts):
        out += view
    number: Array = np.ones((1,) * len(counts), x.dtype)
    include = c.attrs.get("count_include_pad", False)
    for axis, count in enumerate(counts):
        first = np.arange(count) * windows.strides[axis]
        pos = first[:, None] + np.arange(kernel[axis]) * windows.dilations[axis]
        low = 0 if include else begin[axis]
        high = begin[axis] + x.shape[2 + axis] + (end[axis] if include else 0)
        shape = [1] * len(counts)
        shape[axis] = count
        number = number * ((pos >= low) & (pos < high)).sum(1).reshape(shape)
    return out, number


def _eval_average(c: EvalContext, x: Array) -> Array:
    total, number = _tap_sums(c, x)
    return np.divide(total, number, dtype=x.dtype)


average_pool = OpSpec(
    name="average_pool",
    source="ONNX AveragePool-22",
    operands=_X,
    # count_include_pad: padding counts as elements of value 0, but not what lies beyond it
    attrs=(*_POOL_ATTRS, Attr("count_include_pad", AttrKind.BOOL, False)),
    axes=_axes_pool,
    infer=_infer_pool,
    eval=_eval_average,
    flops=_flops_pool,
)


def _eval_lp(c: EvalContext, x: Array) -> Array:
    p = c.attrs["p"]
    total, _ = _tap_sums(c, np.abs(x) ** p)
    out: Array = np.power(total, 1.0 / p, dtype=x.dtype)
    return out


lp_pool = OpSpec(
    name="lp_pool",
    source="ONNX LpPool-22",
    operands=_X,
    attrs=(*_POOL_ATTRS, Attr("p", AttrKind.INT, 2)),
    axes=_axes_pool,
    infer=_infer_pool,
    eval=_eval_lp,
    flops=_flops_pool,
)


def _infer_global(node: Node) -> Type:
    x = node.inputs[0]
    if x is None:
        raise node.error("x is missing")
    if x.shape is None:
        return TensorType(x.dtype, None)
    return TensorType(x.dtype, (*x.shape[:2], *(1,) * (len(x.shape) - 2)))


def _axes_global(node: Node) -> str | None:
    x = node.inputs[0]
    rank = None if x is None else x.rank
    if rank is None or rank < 2:
        return None
    return f"n c {spatial_labels('s', rank - 2)} -> n c {'1 ' * (rank - 2)}"


def _global_pool(name: str, source: str, evaluate: Eval, attrs: tuple[Attr, ...] = ()) -> OpSpec:
    return OpSpec(
        name=name,
        source=source,
        operands=_X,
        attrs=attrs,
        axes=_axes_global,
        infer=_infer_global,
        eval=evaluate,
        flops=lambda node: (
            product(node.inputs[0].shape)
            if node.inputs[0] is not None and node.inputs[0].shape is not None
            else None
        ),
    )


def _over_planes(fn: Callable[..., Array]) -> Eval:
    def evaluate(c: EvalContext, x: Array) -> Array:
        return fn(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return evaluate


def _mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """Returns the mean; NaN without a warning where nothing is averaged, as runtimes do."""
    count = np.asarray(np.prod([x.shape[i] for i in axis]), x.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Array = x.sum(axis=axis, keepdims=keepdims) / count
    return mean


def _eval_global_lp(c: EvalContext, x: Array) -> Array:
    p = c.attrs["p"]
    total = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    out: Array = np.power(total, 1.0 / p, dtype=x.dtype)
    return out


global_max_pool = _global_pool("global_max_pool", "ONNX GlobalMaxPool-22", _over_planes(np.max))
global_average_pool = _global_pool(
    "global_average_pool", "ONNX GlobalAveragePool-22", _over_planes(_mean)
)
global_lp_pool = _global_pool(
    "global_lp_pool", "ONNX GlobalLpPool-22", _eval_global_lp, (Attr("p", AttrKind.INT, 2),)
)

OPS: tuple[OpSpec, ...] = (
    max_pool,
    max_pool_with_indices,
    average_pool,
    lp_pool,
    global_max_pool,
    global_average_pool,
    global_lp_pool,
)
