"""Convolution: conv, conv_transpose."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.dims import DimLike, Shape, known_different, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops.windows import (
    WINDOW_ATTRS,
    Index,
    Sizes,
    Windows,
    as_ints,
    extent,
    pad_for_windows,
    spatial_labels,
    taps,
    window_counts,
    windows_of,
    windows_view,
)
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.evaluate import EvalContext

Array = np.ndarray[Any, Any]

_CHUNK_BYTES = 1 << 26
"""Window columns are laid out in pieces of at most about this size."""

_OPERANDS = (Operand("x"), Operand("weight"), Operand("bias", optional=True))


def _operands(node: Node) -> tuple[Value, Value]:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None:
        raise node.error("x or weight is missing")
    return x, weight


def _check_channels(node: Node, x: Value, weight: Value, expected: DimLike) -> None:
    if x.shape is None or weight.shape is None:
        return
    if len(x.shape) != len(weight.shape):
        raise node.error(f"x has rank {len(x.shape)}, weight has rank {len(weight.shape)}")
    if known_different(x.shape[1], expected):
        groups = node.attrs["groups"]
        raise node.error(
            f"weight takes {expected} input channels (groups={groups}), x has {x.shape[1]}"
        )


def _batch_known(node: Node, dtype: DType | None, shape: Shape) -> Type:
    fresh = [node.fresh_dim(0, axis) for axis in range(1, len(shape))]
    return TensorType(dtype, (shape[0], *fresh))


def _infer_conv(node: Node) -> Type:
    x, weight = _operands(node)
    dtype = x.dtype if x.dtype is not None else weight.dtype
    if x.shape is None:
        return TensorType(dtype, None)
    if weight.shape is None:
        return _batch_known(node, dtype, x.shape)
    _check_channels(node, x, weight, weight.shape[1] * node.attrs["groups"])
    counts = window_counts(windows_of(node.attrs, weight.shape[2:]), x.shape[2:])
    return TensorType(dtype, (x.shape[0], weight.shape[0], *counts))


def _axes_conv(node: Node) -> str | None:
    x, weight = _operands(node)
    rank = x.rank if x.rank is not None else weight.rank
    if rank is None:
        return None
    s, k, t = (spatial_labels(prefix, rank - 2) for prefix in "skt")
    if node.attrs["groups"] == 1:
        return f"n ~i {s}, o ~i {k}, o -> n o {t}"
    if weight.shape is not None and weight.shape[1] == 1:
        if weight.shape[0] == node.attrs["groups"]:  # depthwise
            return f"n g {s}, g 1 {k}, g -> n g {t}"
        return f"n g {s}, (g o*) 1 {k}, (g o*) -> n (g o*) {t}"
    return f"n (g ~i) {s}, (g o*) ~i {k}, (g o*) -> n (g o*) {t}"


def _flops_conv(node: Node) -> DimLike | None:
    weight, result = node.inputs[1], node.output
    if weight is None or weight.shape is None or result.shape is None:
        return None
    return product(weight.shape[1:]) * product(result.shape) * 2


def convolve(x: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """Returns the convolution `f[N, M, *t]` of `x f[N, C, *s]` with `weight f[M, C/groups, *k]`."""
    kernel = weight.shape[2:]
    padded, _, _, counts = pad_for_windows(x, windows)
    out = np.zeros((x.shape[0], weight.shape[0], *counts), x.dtype)
    if not out.size:
        return out
    if weight.shape[1] == 1 and groups > 1:
        return _convolve_depthwise(padded, weight, windows, out)
    columns = windows_view(padded, kernel, windows.strides, windows.dilations, counts)
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    row_bytes = x.shape[1] * prod(kernel) * prod(counts[1:]) * x.itemsize
    rows = max(1, _CHUNK_BYTES // max(row_bytes, 1))
    lead = (slice(None),) * (1 + len(kernel))
    for image in range(x.shape[0]):
        for start in range(0, counts[0], rows):
            part = columns[image][(*lead, slice(start, start + rows))]
            block = matrix @ part.reshape(groups, matrix.shape[2], -1)
            num = min(rows, counts[0] - start)
            out[image, :, start : start + rows] = block.reshape(-1, num, *counts[1:])
    return out


def _convolve_depthwise(padded: Array, weight: Array, windows: Windows, out: Array) -> Array:
    """Sums over taps: one input channel per group needs no matrix product."""
    kernel, counts = weight.shape[2:], out.shape[2:]
    channels = padded.shape[1]
    multiplier = weight.shape[0] // channels
    total = out.reshape(out.shape[0], channels, multiplier, *counts)
    scale = weight.reshape(channels, multiplier, *kernel)
    scratch = np.empty_like(total)
    ones = (1,) * len(counts)
    for tap, view in taps(padded, kernel, windows.strides, windows.dilations, counts):
        index: Index = (..., *tap)
        factor = scale[index].reshape(1, channels, multiplier, *ones)
        np.multiply(view[:, :, None], factor, out=scratch)
        total += scratch
    return out


def add_bias(out: Array, bias: Array | None) -> Array:
    """Returns `out f[N, M, *t]` plus `bias f[M]`, if there is one."""
    return out if bias is None else out + bias.reshape(1, -1, *(1,) * (out.ndim - 2))


def _eval_conv(c: EvalContext, x: Array, weight: Array, bias: Array | None) -> Array:
    windows = windows_of(c.attrs, weight.shape[2:])
    return add_bias(convolve(x, weight, windows, c.attrs["groups"]), bias)


conv = OpSpec(
    name="conv",
    source="ONNX Conv-22",
    operands=_OPERANDS,
    attrs=(*WINDOW_ATTRS, Attr("groups", AttrKind.INT, 1)),
    axes=_axes_conv,
    counts={"groups": "g"},
    infer=_infer_conv,
    eval=_eval_conv,
    flops=_flops_conv,
)


def transpose_padding(
    windows: Windows, output_padding: Sizes, output_shape: Sizes, sizes: tuple[DimLike, ...]
) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...]]:
    """Returns (elements cut before, result size) per axis of a transposed convolution."""
    begin: list[DimLike] = []
    result: list[DimLike] = []
    for axis, size in enumerate(sizes):
        span = extent(windows.kernel[axis], windows.dilations[axis])
        full = (size - 1) * windows.strides[axis] + span + output_padding[axis]
        if not output_shape:
            begin.append(windows.pads[axis])
            result.append(full - windows.pads[axis] - windows.pads[len(sizes) + axis])
            continue
        wanted = output_shape[axis]
        cut = full - wanted
        if isinstance(cut, int):
            cut = max(cut, 0)
        half = cut // 2
        begin.append(half if windows.auto_pad == "same_upper" else cut - half)
        result.append(wanted)
    return tuple(begin), tuple(result)


def _infer_conv_transpose(node: Node) -> Type:
    x, weight = _operands(node)
    dtype = x.dtype if x.dtype is not None else weight.dtype
    if x.shape is None:
        return TensorType(dtype, None)
    if weight.shape is None:
        return _batch_known(node, dtype, x.shape)
    _check_channels(node, x, weight, weight.shape[0])
    attrs = node.attrs
    windows = windows_of(attrs, weight.shape[2:])
    _, sizes = transpose_padding(
        windows, attrs["output_padding"], attrs["output_shape"], x.shape[2:]
    )
    return TensorType(dtype, (x.shape[0], weight.shape[1] * attrs["groups"], *sizes))


def _axes_conv_transpose(node: Node) -> str | None:
    x, weight = _operands(node)
    rank = x.rank if x.rank is not None else weight.rank
    if rank is None:
        return None
    s, k, t = (spatial_labels(prefix, rank - 2) for prefix in "skt")
    if node.attrs["groups"] == 1:
        return f"n ~i {s}, ~i o {k}, o -> n o {t}"
    return f"n (g ~i*) {s}, (g ~i*) o {k}, (g o) -> n (g o) {t}"


def _flops_conv_transpose(node: Node) -> DimLike | None:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or x.shape is None or weight.shape is None:
        return None
    return product(weight.shape[1:]) * product(x.shape) * 2


def _eval_conv_transpose(c: EvalContext, x: Array, weight: Array, bias: Array | None) -> Array:
    groups, kernel = c.attrs["groups"], weight.shape[2:]
    windows = windows_of(c.attrs, kernel)
    counts = x.shape[2:]
    begin, sizes = map(
        as_ints,
        transpose_padding(windows, c.attrs["output_padding"], c.attrs["output_shape"], counts),
    )
    # taps of every element, then summed where they land
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)
    flat = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    channels = weight.shape[1] * groups
    columns = (matrix @ flat).reshape(x.shape[0], channels, *kernel, *counts)
    full = [
        max((n - 1) * s + (k - 1) * d + 1, b + size)
        for n, s, k, d, b, size in zip(
            counts, windows.strides, kernel, windows.dilations, begin, sizes, strict=True
        )
    ]
    out = np.zeros((x.shape[0], channels, *full), x.dtype)
    for tap, view in taps(out, kernel, windows.strides, windows.dilations, counts):
        index: Index = (slice(None), slice(None), *tap)
        view += columns[index]
    kept: Index = (..., *(slice(b, b + size) for b, size in zip(begin, sizes, strict=True)))
    return add_bias(out[kept], bias)


conv_transpose = OpSpec(
    name="conv_transpose",
    source="ONNX ConvTranspose-22",
    operands=_OPERANDS,
    attrs=(
        *WINDOW_ATTRS,
        Attr("output_padding", AttrKind.INTS),
        # spatial sizes of the result when pads depend on symbolic sizes; `pads` is then ignored
        Attr("output_shape", AttrKind.INTS, ()),
        Attr("groups", AttrKind.INT, 1),
    ),
    axes=_axes_conv_transpose,
    counts={"groups": "g"},
    infer=_infer_conv_transpose,
    eval=_eval_conv_transpose,
    flops=_flops_conv_transpose,
)


OPS: tuple[OpSpec, ...] = (conv, conv_transpose)
