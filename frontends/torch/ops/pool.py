"""Importers of pooling: maximum and average over windows and over adaptive ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.conv import batched, full_sizes
from regraft.frontends.torch.ops.shape import moved, shape_of
from regraft.frontends.torch.ops.slicing import joined, sliced
from regraft.ir.dims import DimLike, divisor_of, exactdiv, known_equal, product
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, pool
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reduce import reduce_max, reduce_mean
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.types import DType


def _windows(c: CallImport, rank: int) -> dict[str, Any]:
    kernel = full_sizes(c.attr("kernel_size"), rank)
    stride = c.attr("stride")
    return {
        "kernel": kernel,
        "strides": full_sizes(stride, rank) if stride or isinstance(stride, int) else kernel,
        "dilations": full_sizes(c.args.get("dilation", 1), rank),
        "pads": full_sizes(c.attr("padding"), rank) * 2,
        "ceil_mode": bool(c.attr("ceil_mode")),
    }


def _rank_of(c: CallImport) -> int:
    """Returns the number of spatial axes that the overload's name states."""
    name = c.target.split(".")[1]
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in name)


def _max_pool(c: CallImport) -> Value:
    rank = _rank_of(c)
    attrs = _windows(c, rank)
    return batched(c, c.value("self"), rank, lambda x: c.b.op(pool.max_pool, x, **attrs))


def _max_pool_with_indices(c: CallImport) -> Sequence[Value]:
    rank = _rank_of(c)
    attrs = _windows(c, rank)
    x = c.value("self")
    whole = len(shape_of(x)) == rank + 2
    if not whole:
        x = c.b.op(unsqueeze, x, axes=(0,))
    out, indices = c.b.multi(pool.max_pool_with_indices, x, **attrs)
    # PyTorch counts within a plane, the IR within the tensor
    plane = c.number(product(shape_of(x)[2:]), DType.I64)
    results = [out, c.b.op(arithmetic.mod, indices, plane)]
    return results if whole else [c.b.op(squeeze, item, axes=(0,)) for item in results]


def _average_pool(c: CallImport) -> Value:
    rank = _rank_of(c)
    attrs = _windows(c, rank) | {"count_include_pad": bool(c.attr("count_include_pad"))}
    divisor = c.args.get("divisor_override")
    if divisor is not None:
        if attrs["ceil_mode"]:
            raise UnsupportedCallError("a divisor of its own with windows beyond the end")
        attrs["count_include_pad"] = True
    out = batched(c, c.value("self"), rank, lambda x: c.b.op(pool.average_pool, x, **attrs))
    if divisor is None:
        return out
    factor = prod(attrs["kernel"]) / divisor
    return c.b.op(arithmetic.mul, out, c.number(factor, c.dtype))


def _output_sizes(c: CallImport, x: Value, rank: int) -> list[DimLike]:
    given: tuple[Any, ...] = full_sizes(c.attr("output_size"), rank)
    sizes = shape_of(x)[-rank:]
    return [old if new is None else new for old, new in zip(sizes, given, strict=True)]


def _adaptive_average(c: CallImport) -> Value:
    rank = _rank_of(c)
    x = c.value("self")
    wanted = _output_sizes(c, x, rank)
    if all(size == 1 for size in wanted):
        if len(shape_of(x)) == rank + 2:
            return c.b.op(pool.global_average_pool, x)
        return c.b.op(reduce_mean, x, axes=tuple(range(1, rank + 1)), keepdims=True)
    sizes = shape_of(x)[-rank:]
    ratios = _whole_ratios(sizes, wanted)
    if ratios is not None:
        attrs = _plain_windows(ratios)
        return batched(c, x, rank, lambda y: c.b.op(pool.average_pool, y, **attrs))
    for i, (old, new) in enumerate(zip(sizes, wanted, strict=True)):
        if known_equal(old, new):
            continue
        axis = len(shape_of(x)) - rank + i
        if new == 1:
            x = c.b.op(reduce_mean, x, axes=(axis,), keepdims=True)
        else:
            x = _average_along(c, x, axis, _bounds(old, new))
    return x


def _whole_ratios(old: Sequence[DimLike], new: Sequence[DimLike]) -> tuple[int, ...] | None:
    """Returns the window sizes when every axis divides evenly into equal static ones."""
    ratios = []
    for size, count in zip(old, new, strict=True):
        if not isinstance(count, int) or count == 0 or divisor_of(size) % count:
            return None
        ratios.append(exactdiv(size, count))
    known = tuple(ratio for ratio in ratios if isinstance(ratio, int))
    return known if len(known) == len(ratios) else None


def _plain_windows(kernel: tuple[int, ...]) -> dict[str, Any]:
    rank = len(kernel)
    return {
        "kernel": kernel, "strides": kernel, "dilations": (1,) * rank, "pads": (0,) * (2 * rank)
    }  # fmt: skip


def _bounds(old: DimLike, new: DimLike) -> list[tuple[int, int]]:
    """Returns first and last-plus-one position of every adaptive window."""
    if not isinstance(old, int) or not isinstance(new, int):
        raise UnsupportedCallError("adaptive windows of symbolic size")
    return [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]


def _average_along(c: CallImport, x: Value, axis: int, bounds: list[tuple[int, int]]) -> Value:
    """Windows of unequal size are a product with a constant matrix."""
    rank = len(shape_of(x))
    weights = np.zeros((bounds[-1][1], len(bounds)))
    for i, (start, end) in enumerate(bounds):
        weights[start:end, i] = 1 / (end - start)
    order = (*(i for i in range(rank) if i != axis), axis)
    back = (*range(axis), rank - 1, *range(axis, rank - 1))
    out = c.b.op(matmul, moved(c, x, order), c.b.constant(weights, c.dtype, name="windows"))
    return moved(c, out, back)


def _adaptive_max(c: CallImport) -> Sequence[Value | None]:
    rank = _rank_of(c)
    x = c.value("self")
    wanted, sizes = _output_sizes(c, x, rank), shape_of(x)[-rank:]
    ratios = _whole_ratios(sizes, wanted)
    if ratios is not None:
        attrs = _plain_windows(ratios)
        whole = len(shape_of(x)) == rank + 2
        y = x if whole else c.b.op(unsqueeze, x, axes=(0,))
        out, indices = c.b.multi(pool.max_pool_with_indices, y, **attrs)
        plane = c.number(product(sizes), DType.I64)
        results = [out, c.b.op(arithmetic.mod, indices, plane)]
        return results if whole else [c.b.op(squeeze, item, axes=(0,)) for item in results]
    for i, (old, new) in enumerate(zip(sizes, wanted, strict=True)):
        axis = len(shape_of(x)) - rank + i
        if new == 1:
            x = c.b.op(reduce_max, x, axes=(axis,), keepdims=True)
        elif not known_equal(old, new):
            parts = [sliced(c, x, axis, start, end) for start, end in _bounds(old, new)]
            tops = [c.b.op(reduce_max, part, axes=(axis,), keepdims=True) for part in parts]
            x = joined(c, tops, axis)
    return [x, None]


def _names(form: str) -> tuple[str, ...]:
    return tuple(form.format(rank) for rank in (1, 2, 3))


IMPORTS: tuple[Import, ...] = (
    row(_max_pool, *_names("aten.max_pool{}d.default")),
    row(
        _max_pool_with_indices, "aten.max_pool1d_with_indices.default",
        "aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default",
    ),
    row(_average_pool, *_names("aten.avg_pool{}d.default")),
    row(
        _adaptive_average, *_names("aten.adaptive_avg_pool{}d.default"),
        "aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default",
    ),
    row(_adaptive_max, *_names("aten.adaptive_max_pool{}d.default")),
)  # fmt: skip
