"""Importers of views: other axes for the same elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.frontends.torch.call import CallImport, Import, Importer, row
from regraft.ir.dims import DimLike, exactdiv, product
from regraft.ir.graph import Value
from regraft.ir.ops.blocks import depth_to_space
from regraft.ir.ops.reshaping import reshape, squeeze, transpose, unsqueeze


def reshaped(c: CallImport, x: Value, shape: Sequence[DimLike]) -> Value:
    """Returns the elements in another shape; the value itself when the shape is the same."""
    shape = tuple(shape)
    return x if x.shape == shape else c.b.op(reshape, x, shape=shape)


def moved(c: CallImport, x: Value, perm: Sequence[int]) -> Value:
    """Returns a permutation of axes; the value itself when nothing moves."""
    perm = tuple(perm)
    return x if perm == tuple(range(len(perm))) else c.b.op(transpose, x, perm=perm)


def shape_of(x: Value) -> tuple[DimLike, ...]:
    """Returns the sizes of a tensor, which an export always knows."""
    if x.shape is None:
        raise AssertionError("tensors of an export have shapes")
    return x.shape


def _view(c: CallImport) -> Value:
    return reshaped(c, c.value("self"), c.shape)


def _permute(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(shape_of(x))
    return moved(c, x, [axis % rank for axis in c.attr("dims")])


def _swap(first: str, second: str) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        rank = len(shape_of(x))
        if not rank:
            return x
        perm = list(range(rank))
        i, j = c.axis(first, rank), c.axis(second, rank)
        perm[i], perm[j] = perm[j], perm[i]
        return moved(c, x, perm)

    return run


def _reverse_axes(c: CallImport) -> Value:
    x = c.value("self")
    return moved(c, x, range(len(shape_of(x)))[::-1])


def _swap_last(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(shape_of(x))
    return moved(c, x, (*range(rank - 2), rank - 1, rank - 2))


def _named_axes(given: Any, rank: int) -> list[int]:
    """Returns axes counted from the front; one number counts as a list of one."""
    axes = given if isinstance(given, tuple) else (given,)
    return [axis % rank for axis in axes]


def _move(c: CallImport) -> Value:
    x = c.value("self")
    rank = len(shape_of(x))
    source = _named_axes(c.attr("source"), rank)
    target = _named_axes(c.attr("destination"), rank)
    rest = iter(axis for axis in range(rank) if axis not in source)
    place = dict(zip(target, source, strict=True))
    return moved(c, x, [place[i] if i in place else next(rest) for i in range(rank)])


def _squeeze(c: CallImport) -> Value:
    x = c.value("self")
    shape = shape_of(x)
    if not shape:
        return x
    dims = c.args.get("dim")
    named = range(len(shape)) if dims is None else _named_axes(dims, len(shape))
    axes = tuple(sorted({axis for axis in named if shape[axis] == 1}))
    return c.b.op(squeeze, x, axes=axes) if axes else x


def _unsqueeze(c: CallImport) -> Value:
    x = c.value("self")
    return c.b.op(unsqueeze, x, axes=(c.axis("dim", len(shape_of(x)) + 1),))


def _pixel_shuffle(c: CallImport) -> Value:
    x, block = c.value("self"), c.attr("upscale_factor")
    shape = shape_of(x)
    if len(shape) == 4:
        return c.b.op(depth_to_space, x, block_size=block, mode="CRD")
    *batch, channels, height, width = shape
    n = len(batch)
    split = (*batch, exactdiv(channels, block * block), block, block, height, width)
    x = reshaped(c, x, split)
    x = moved(c, x, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshaped(c, x, c.shape)


def _pixel_unshuffle(c: CallImport) -> Value:
    x, block = c.value("self"), c.attr("downscale_factor")
    *batch, channels, height, width = shape_of(x)
    n = len(batch)
    split = (*batch, channels, exactdiv(height, block), block, exactdiv(width, block), block)
    x = reshaped(c, x, split)
    x = moved(c, x, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshaped(c, x, c.shape)


def _channel_shuffle(c: CallImport) -> Value:
    x, groups = c.value("self"), c.attr("groups")
    batch, channels, *spatial = shape_of(x)
    # the trailing axes stay together
    rest = product(spatial)
    x = reshaped(c, x, (batch, groups, exactdiv(channels, groups), rest))
    return reshaped(c, moved(c, x, (0, 2, 1, 3)), c.shape)


def _at_least(rank: int) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        shape = shape_of(x)
        if len(shape) >= rank:
            return x
        full = {1: (1,), 2: (1, *shape) if shape else (1, 1)}
        if rank < 3:
            return reshaped(c, x, full[rank])
        padded = (1, 1, 1) if not shape else (1, *shape, 1) if len(shape) == 1 else (*shape, 1)
        return reshaped(c, x, padded)

    return run


IMPORTS: tuple[Import, ...] = (
    row(
        _view, "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default",
        "aten.view_as.default", "aten.reshape_as.default", "aten.flatten.using_ints",
        "aten.unflatten.int", "aten.ravel.default", "aten.view_copy.default",
        "aten._reshape_copy.default", "aten._reshape_alias.default",
    ),
    row(_permute, "aten.permute.default", "aten.permute_copy.default"),
    row(
        _swap("dim0", "dim1"), "aten.transpose.int", "aten.transpose.default",
        "aten.swapdims.default",
    ),
    row(_swap("axis0", "axis1"), "aten.swapaxes.default"),
    row(_reverse_axes, "aten.t.default", "aten.numpy_T.default"),
    row(_swap_last, "aten.mT.default", "aten.matrix_H.default", "aten.mH.default"),
    row(_move, "aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int",
        "aten.moveaxis.intlist"),
    row(_squeeze, "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims"),
    row(_unsqueeze, "aten.unsqueeze.default"),
    row(_pixel_shuffle, "aten.pixel_shuffle.default"),
    row(_pixel_unshuffle, "aten.pixel_unshuffle.default"),
    row(_channel_shuffle, "aten.channel_shuffle.default",
        "aten.native_channel_shuffle.default"),
    row(_at_least(1), "aten.atleast_1d.default"),
    row(_at_least(2), "aten.atleast_2d.default"),
    row(_at_least(3), "aten.atleast_3d.default"),
)  # fmt: skip
