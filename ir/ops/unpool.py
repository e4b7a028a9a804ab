"""Inverses of windows: max_unpool, col2im."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Node
from regraft.ir.ops.windows import Index, Windows, spatial_labels, static_windows, taps
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]


def _pooled_sizes(node: Node, spatial: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    """Returns the sizes that a pool with these windows had before it."""
    attrs = node.attrs
    rank = len(spatial)
    return tuple(
        (size - 1) * attrs["strides"][i]
        + attrs["kernel"][i]
        - attrs["pads"][i]
        - attrs["pads"][rank + i]
        for i, size in enumerate(spatial)
    )


def _infer_max_unpool(node: Node) -> Type:
    x = node.inputs[0]
    if x is None:
        raise node.error("x is missing")
    sizes = node.static("output_shape")
    if sizes is not None:
        return TensorType(x.dtype, tuple(sizes))
    if x.shape is None:
        return TensorType(x.dtype, None)
    if node.operand("output_shape") is not None:
        fresh = [node.fresh_dim(0, axis) for axis in range(2, len(x.shape))]
        return TensorType(x.dtype, (*x.shape[:2], *fresh))
    return TensorType(x.dtype, (*x.shape[:2], *_pooled_sizes(node, x.shape[2:])))


def _eval_max_unpool(c: EvalContext, x: Array, indices: Array, output_shape: Array | None) -> Array:
    natural = tuple(int(n) for n in (*x.shape[:2], *_pooled_sizes(c.node, x.shape[2:])))
    flat = np.zeros(prod(natural), x.dtype)
    flat[indices.reshape(-1)] = x.reshape(-1)
    placed = flat.reshape(natural)
    wanted = c.param("output_shape", output_shape)
    if wanted is None or tuple(wanted) == natural:
        return placed
    # indices count in the natural shape; a larger result is zero beyond it
    out = np.zeros(wanted, x.dtype)
    out[tuple(slice(0, n) for n in natural)] = placed
    return out


max_unpool = OpSpec(
    name="max_unpool",
    source="ONNX MaxUnpool-22",
    operands=(
        Operand("x"),
        Operand("indices"),
        Operand("output_shape", optional=True, either=AttrKind.DIMS),
    ),
    attrs=(
        Attr("kernel", AttrKind.INTS),
        Attr("strides", AttrKind.INTS),
        Attr("pads", AttrKind.INTS),
    ),
    traits=Trait.PURE | Trait.DATA_MOVEMENT,
    infer=_infer_max_unpool,
    eval=_eval_max_unpool,
)


def _infer_col2im(node: Node) -> Type:
    x, image, block = node.inputs[0], node.static("image_shape"), node.static("block_shape")
    if x is None:
        raise node.error("x is missing")
    if x.shape is None:
        return TensorType(x.dtype, None)
    rank = len(node.attrs["strides"])
    channels = exactdiv(x.shape[1], prod(block)) if block is not None else node.fresh_dim(0, 1)
    if image is None:
        image = tuple(node.fresh_dim(0, 2 + axis) for axis in range(rank))
    return TensorType(x.dtype, (x.shape[0], channels, *image))


def _axes_col2im(node: Node) -> str | None:
    block = node.attrs["block_shape"]
    if block is None:
        return None
    taps_ = " ".join(f"k{i}!" for i, size in enumerate(block) if size != 1)
    return f"n (c {taps_}) l!, ., . -> n c {spatial_labels('t', len(block))}"


def _eval_col2im(c: EvalContext, x: Array, image: Array | None, block: Array | None) -> Array:
    sizes = tuple(int(n) for n in c.param("image_shape", image))
    kernel = tuple(int(n) for n in c.param("block_shape", block))
    strides, dilations, pads = c.attrs["strides"], c.attrs["dilations"], c.attrs["pads"]
    windows = Windows(kernel, strides, dilations, pads)
    begin, end, counts = static_windows(windows, sizes)
    channels = x.shape[1] // prod(kernel)
    columns = x.reshape(x.shape[0], channels, *kernel, *counts)
    padded = [
        max(b + n + e, (count - 1) * s + (k - 1) * d + 1)
        for b, n, e, count, s, k, d in zip(
            begin, sizes, end, counts, strides, kernel, dilations, strict=True
        )
    ]
    out = np.zeros((x.shape[0], channels, *padded), x.dtype)
    for tap, view in taps(out, kernel, strides, dilations, counts):
        index: Index = (slice(None), slice(None), *tap)
        view += columns[index]
    kept: Index = (..., *(slice(b, b + n) for b, n in zip(begin, sizes, strict=True)))
    return out[kept]


def _flops_col2im(node: Node) -> DimLike | None:
    x = node.inputs[0]
    return None if x is None or x.shape is None else product(x.shape)  # one sum per tap


col2im = OpSpec(
    name="col2im",
    source="ONNX Col2Im-18",
    operands=(
        Operand("x"),
        Operand("image_shape", either=AttrKind.DIMS),
        Operand("block_shape", either=AttrKind.INTS),
    ),
    attrs=(
        Attr("strides", AttrKind.INTS),
        Attr("dilations", AttrKind.INTS),
        Attr("pads", AttrKind.INTS),
    ),
    axes=_axes_col2im,
    counts={"block_shape": "*k!"},
    infer=_infer_col2im,
    eval=_eval_col2im,
    flops=_flops_col2im,
)

OPS: tuple[OpSpec, ...] = (max_unpool, col2im)
