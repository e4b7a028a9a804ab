"""Importers of convolutions, plain and transposed, and of their unfolded forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import padded, window_index
from regraft.frontends.torch.ops.shape import moved, reshaped, shape_of
from regraft.ir.dims import DimLike, exactdiv, floordiv, product
from regraft.ir.graph import Value
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.conv import conv, conv_transpose
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reshaping import squeeze, unsqueeze
from regraft.ir.ops.unpool import col2im


def full_sizes(given: Any, rank: int) -> tuple[int, ...]:
    """Returns one number per spatial axis from a number, a list of one, or a full list."""
    values = tuple(given) if isinstance(given, Sequence) else (given,)
    return values * rank if len(values) == 1 else values


def _pads(c: CallImport, kernel: Sequence[DimLike], dilations: Sequence[int]) -> tuple[int, ...]:
    """Returns the pads before every axis, then after."""
    rank = len(kernel)
    given = c.attr("padding")
    if given == "valid":
        return (0,) * (2 * rank)
    if given != "same":
        return full_sizes(given, rank) * 2
    totals = []
    for taps, dilation in zip(kernel, dilations, strict=True):
        if not isinstance(taps, int):
            raise UnsupportedCallError("`same` padding of a kernel of symbolic size")
        totals.append(dilation * (taps - 1))
    # the odd element comes last
    return (*(n // 2 for n in totals), *(n - n // 2 for n in totals))


def batched(c: CallImport, x: Value, rank: int, compute: Any) -> Value:
    """Returns `compute(x)` for an `x` that may lack the batch axis."""
    if len(shape_of(x)) == rank + 2:
        return compute(x)  # type: ignore[no-any-return]  # a value
    return c.b.op(squeeze, compute(c.b.op(unsqueeze, x, axes=(0,))), axes=(0,))


def _conv(c: CallImport) -> Value:
    if not isinstance(c.attr("groups"), int):
        return _by_example(c)
    weight = c.value("weight")
    kernel = shape_of(weight)[2:]
    rank = len(kernel)
    dilations = full_sizes(c.attr("dilation"), rank)
    attrs = {
        "strides": full_sizes(c.attr("stride"), rank),
        "dilations": dilations,
        "pads": _pads(c, kernel, dilations),
        "groups": c.attr("groups"),
    }
    return batched(
        c, c.value("input"), rank,
        lambda x: c.b.op(conv, x, weight, c.optional("bias"), **attrs),
    )  # fmt: skip


def _by_example(c: CallImport) -> Value:
    """A convolution of as many groups as there are examples, each with weights of its own.

    `f32[N, G * C, H, W]` and `f32[G * O, C, kh, kw]` -> `f32[N, G * O, oh, ow]`: the number of
    groups of a convolution is no size, so that windows meet weights in a product of matrices.
    """
    x, weight, bias = c.value("input"), c.value("weight"), c.optional("bias")
    (n, *_), (rows, *window) = shape_of(x), shape_of(weight)
    taps = tuple(size for size in window[1:] if isinstance(size, int))
    if len(window) != 3 or len(taps) != 2:
        raise UnsupportedCallError("groups of symbolic number, not in two dimensions")
    groups, depth = c.attr("groups"), product(window)
    dilations = full_sizes(c.attr("dilation"), 2)
    pads = _pads(c, window[1:], dilations)
    columns, counts = _columns(
        c, padded(c, x, (pads[1], pads[3], pads[0], pads[2]), "constant"),
        taps, full_sizes(c.attr("stride"), 2), dilations,
    )  # fmt: skip
    columns = reshaped(c, columns, (n, groups, depth, product(counts)))
    matrices = reshaped(c, weight, (groups, exactdiv(rows, groups), depth))
    result = reshaped(c, c.b.op(matmul, matrices, columns), (n, rows, *counts))
    if bias is None:
        return result
    return c.b.op(add, result, c.b.op(unsqueeze, bias, axes=(1, 2)))


def _conv_transpose(c: CallImport) -> Value:
    if not isinstance(c.attr("groups"), int):
        raise UnsupportedCallError("groups of symbolic number")
    weight = c.value("weight")
    rank = len(shape_of(weight)) - 2
    attrs = {
        "strides": full_sizes(c.attr("stride"), rank),
        "dilations": full_sizes(c.attr("dilation"), rank),
        "pads": full_sizes(c.attr("padding"), rank) * 2,
        "output_padding": full_sizes(c.attr("output_padding"), rank),
        "groups": c.attr("groups"),
    }
    return batched(
        c, c.value("input"), rank,
        lambda x: c.b.op(conv_transpose, x, weight, c.optional("bias"), **attrs),
    )  # fmt: skip


def _convolution(c: CallImport) -> Value:
    return _conv_transpose(c) if c.attr("transposed") else _conv(c)


def _im2col(c: CallImport) -> Value:
    """Windows of an image as columns `[N, C * kh * kw, L]`."""
    x = c.value("self")
    kernel, strides, pads, dilations = (
        full_sizes(c.attr(name), 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    x = padded(c, x, (pads[1], pads[1], pads[0], pads[0]), "constant")
    return _columns(c, x, kernel, strides, dilations)[0]


def _columns(
    c: CallImport,
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[Value, Sequence[DimLike]]:
    """Returns the windows of `T[*N, C, H, W]` as `T[*N, C * kh * kw, L]`, and their counts."""
    shape = shape_of(x)
    batch = len(shape) - 3
    counts = [
        floordiv(size - dilation * (taps - 1) - 1, stride) + 1
        for size, taps, stride, dilation in zip(shape[-2:], kernel, strides, dilations, strict=True)
    ]
    for i in (1, 0):  # the last axis first, so that the other keeps its place
        index = window_index(c, counts[i], strides[i], kernel[i], dilations[i])
        x = c.b.op(gather, x, index, axis=batch + 1 + i)
    # [N, C, oh, kh, ow, kw]
    n = batch
    x = moved(c, x, (*range(n + 1), n + 2, n + 4, n + 1, n + 3))
    flat = (*shape[:batch], shape[batch] * kernel[0] * kernel[1], product(counts))
    return reshaped(c, x, flat), counts


def _col2im(c: CallImport) -> Value:
    kernel, strides, pads, dilations = (
        full_sizes(c.attr(name), 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )

    def fold(x: Value) -> Value:
        return c.b.op(
            col2im, x, image_shape=c.sizes("output_size"), block_shape=kernel, strides=strides,
            dilations=dilations, pads=pads * 2,
        )  # fmt: skip

    return batched(c, c.value("self"), 1, fold)


def _names(name: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}{rank}d" for rank in (1, 2, 3))


IMPORTS: tuple[Import, ...] = (
    row(_conv, *(f"{name}.{kind}" for name in _names("conv") for kind in ("default", "padding"))),
    row(
        _conv_transpose, "aten.conv_transpose1d.default", "aten.conv_transpose2d.input",
        "aten.conv_transpose3d.input",
    ),
    row(
        _convolution, "aten.convolution.default", "aten._convolution.default",
        "aten._convolution.deprecated",
    ),
    row(_im2col, "aten.im2col.default"),
    row(_col2im, "aten.col2im.default"),
)  # fmt: skip
