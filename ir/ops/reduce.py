"""Reductions: sum, mean, max, min, prod, l1, l2, log_sum, log_sum_exp, sum_square.

`axes` lists the reduced axes, non-negative and sorted once the rank is known; without `axes` every
axis is reduced. An empty tuple reduces nothing: only the operation around the sum remains (`log`
of `reduce_log_sum`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Content, Node
from regraft.ir.ops.content import in_dtype, size_max, size_min
from regraft.ir.ops.shapes import normalize_axis, operands_of
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]
Reduction = Callable[[Array, tuple[int, ...] | None], Array]


def reduced_axes(node: Node) -> tuple[int, ...] | None:
    """Returns the reduced axes, non-negative and sorted, or None when only run time knows them."""
    x, operand = node.inputs
    rank = None if x is None else x.rank
    if rank is None:
        return None
    axes = node.attrs["axes"]
    if axes is None and operand is not None:
        if operand.content is None:
            return None
        axes = _named_axes(operand.content, empty_is_none=node.attrs["empty_is_none"])
    if axes is None:
        return tuple(range(rank))
    return tuple(sorted({normalize_axis(node, axis, rank) for axis in axes}))


def _named_axes(value: Any, *, empty_is_none: bool) -> tuple[int, ...] | None:
    """Returns the content of an operand `axes`, None for all axes."""
    axes = value if isinstance(value, tuple) else (value,)
    return axes if axes or empty_is_none else None


def _infer(node: Node) -> Type:
    (x,) = operands_of(node, 1)
    shape, keepdims = x.shape, node.attrs["keepdims"]
    if shape is None:
        every = node.inputs[1] is None and node.attrs["axes"] is None and not keepdims
        return TensorType(x.dtype, () if every else None)
    axes = reduced_axes(node)
    if axes is not None:
        if keepdims:
            return TensorType(
                x.dtype, tuple(1 if i in axes else dim for i, dim in enumerate(shape))
            )
        return TensorType(x.dtype, tuple(dim for i, dim in enumerate(shape) if i not in axes))
    if keepdims:
        return TensorType(
            x.dtype, tuple(1 if dim == 1 else node.fresh_dim(0, i) for i, dim in enumerate(shape))
        )
    return TensorType(x.dtype, None)


def _axes_rule(mark: str) -> Callable[[Node], str | None]:
    form = "~a{}" if mark == "~" else "a{}!"

    def rule(node: Node) -> str | None:
        x = node.inputs[0]
        axes = reduced_axes(node)
        if axes is None or x is None or x.rank is None:
            return None
        source = [form.format(i) if i in axes else f"a{i}" for i in range(x.rank)]
        if node.attrs["keepdims"]:
            kept = ["1" if i in axes else f"a{i}" for i in range(x.rank)]
        else:
            kept = [f"a{i}" for i in range(x.rank) if i not in axes]
        # the operand `axes` is a vector of its own
        return f"{' '.join(source)}, . -> {' '.join(kept)}"

    return rule


def _eval(fn: Reduction) -> Callable[..., Array]:
    def run(c: Any, x: Array, axes: Array | None) -> Array:
        value = c.param("axes", axes)
        if axes is not None:
            value = _named_axes(value, empty_is_none=c.attrs["empty_is_none"])
        full = tuple(range(x.ndim)) if value is None else tuple(axis % x.ndim for axis in value)
        out = np.asarray(fn(x, full)).astype(x.dtype, copy=False)
        if c.attrs["keepdims"]:
            return out
        return out.reshape([size for i, size in enumerate(x.shape) if i not in full])

    return run


def _content(
    fold: Callable[[tuple[DimLike, ...]], DimLike | None],
) -> Callable[[Node], Content | None]:
    def content(node: Node) -> Content | None:
        x = node.inputs[0]
        known = None if x is None else x.content
        dtype = node.output.dtype
        if not isinstance(known, tuple) or dtype is None:
            return None
        if node.attrs["axes"] != (0,) and reduced_axes(node) != (0,):
            return None
        total = fold(known)
        total = None if total is None else in_dtype(total, dtype)
        if total is None:
            return None
        return (total,) if node.attrs["keepdims"] else total

    return content


def _flops(node: Node) -> DimLike | None:
    shape = operands_of(node, 1)[0].shape
    return None if shape is None else product(shape)


def _reduction(
    name: str,
    source: str,
    fn: Reduction,
    *,
    mark: str,
    fold: Callable[[tuple[DimLike, ...]], DimLike | None] | None = None,
) -> OpSpec:
    """Returns a reduction's spec; `mark` is `~` where dropping equals zeroing, else `!`."""
    return OpSpec(
        name=f"reduce_{name}",
        source=f"ONNX {source}",
        operands=(Operand("x"), Operand("axes", optional=True, either=AttrKind.INTS)),
        attrs=(
            Attr("keepdims", AttrKind.BOOL, True),
            # what an operand `axes` that turns out empty means: no axis, else every axis
            Attr("empty_is_none", AttrKind.BOOL, False),
        ),
        axes=_axes_rule(mark),
        infer=_infer,
        eval=_eval(fn),
        content=None if fold is None else _content(fold),
        flops=_flops,
    )


def _lowest(x: Array) -> Any:
    if x.dtype.kind in "iu":
        return np.iinfo(x.dtype).min
    return False if x.dtype.kind == "b" else -np.inf


def _highest(x: Array) -> Any:
    if x.dtype.kind in "iu":
        return np.iinfo(x.dtype).max
    return True if x.dtype.kind == "b" else np.inf


def _mean(x: Array, axes: tuple[int, ...] | None) -> Array:
    if x.dtype.kind in "iu":  # integers truncate toward zero, as runtimes do
        total = np.sum(x, axis=axes, keepdims=True)
        count = max(x.size // max(total.size, 1), 1)
        return np.asarray(np.trunc(total / count))
    return np.asarray(np.mean(x, axis=axes, keepdims=True))


def _log_sum_exp(x: Array, axes: tuple[int, ...] | None) -> Array:
    top = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0)  # inf - inf would be NaN
    return np.asarray(np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=True)) + shift)


reduce_sum = _reduction(
    "sum", "ReduceSum-13", lambda x, axes: np.sum(x, axis=axes, keepdims=True),
    mark="~", fold=lambda sizes: sum(sizes, 0),
)  # fmt: skip
reduce_mean = _reduction("mean", "ReduceMean-18", _mean, mark="!")
reduce_max = _reduction(
    "max", "ReduceMax-20",
    lambda x, axes: np.max(x, axis=axes, keepdims=True, initial=_lowest(x)),
    mark="!", fold=lambda sizes: size_max(*sizes),
)  # fmt: skip
reduce_min = _reduction(
    "min", "ReduceMin-20",
    lambda x, axes: np.min(x, axis=axes, keepdims=True, initial=_highest(x)),
    mark="!", fold=lambda sizes: size_min(*sizes),
)  # fmt: skip
reduce_prod = _reduction(
    "prod", "ReduceProd-18", lambda x, axes: np.prod(x, axis=axes, keepdims=True),
    mark="!", fold=product,
)  # fmt: skip
reduce_l1 = _reduction(
    "l1", "ReduceL1-18", lambda x, axes: np.sum(np.abs(x), axis=axes, keepdims=True), mark="~"
)
reduce_l2 = _reduction(
    "l2", "ReduceL2-18", lambda x, axes: np.sqrt(np.sum(x * x, axis=axes, keepdims=True)),
    mark="~",
)  # fmt: skip
reduce_log_sum = _reduction(
    "log_sum", "ReduceLogSum-18", lambda x, axes: np.log(np.sum(x, axis=axes, keepdims=True)),
    mark="~",
)  # fmt: skip
reduce_log_sum_exp = _reduction("log_sum_exp", "ReduceLogSumExp-28", _log_sum_exp, mark="!")
reduce_sum_square = _reduction(
    "sum_square", "ReduceSumSquare-18", lambda x, axes: np.sum(x * x, axis=axes, keepdims=True),
    mark="~",
)  # fmt: skip

OPS: tuple[OpSpec, ...] = (
    reduce_sum,
    reduce_mean,
    reduce_max,
    reduce_min,
    reduce_prod,
    reduce_l1,
    reduce_l2,
    reduce_log_sum,
    reduce_log_sum_exp,
    reduce_sum_square,
)

BY_ONNX_NAME: dict[str, OpSpec] = {
    spec.source.removeprefix("ONNX ").rpartition("-")[0]: spec for spec in OPS
}
"""Reductions by the ONNX operator that their source names."""
