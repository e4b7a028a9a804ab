"""Ties of operators that copy positions by constant index: gather, gather_nd, tile, pad.

An index map counts through the source in nested loops (see `index_maps`), or falls into runs of
consecutive positions, each of which ties a part of the source axis with a part of the result's.
The indices are written anew when the source shrinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.shapes import normalize_axis
from regraft.passes.analysis.coupling.index_maps import Loop, loops_of
from regraft.passes.analysis.coupling.spaces import (
    Pin,
    Space,
    cut,
    pin,
    product_of,
    sum_of,
    unify,
)

if TYPE_CHECKING:
    from regraft.passes.analysis.coupling.builder import Builder

Array = np.ndarray[Any, Any]

_MAX_RUNS = 64
"""An index map of more runs than this is taken for data, and pins the axis."""


def tie_gather(builder: Builder, node: Node) -> bool:
    """Ties a gather by constant indices; False where the rule must do."""
    picked = _picked(node)
    if picked is None:
        return False
    axis, grid = picked
    x, indices = node.inputs[:2]
    assert x is not None, "something is picked from it"
    assert indices is not None, "they are constant"
    source, result = builder.spaces_of(x), builder.spaces_of(node.output)
    whole = source[axis]
    loops = loops_of(grid, int(str(whole.size))) if grid.ndim else None
    if loops is not None:
        _tie_loops(builder, node, (whole, axis, grid), loops)
        return True
    runs = _runs(grid.reshape(-1))
    if grid.ndim > 1 or len(runs) > _MAX_RUNS:
        return False
    why = Pin(node.op.name, _name(node), f"x axis {axis}", "its indices cut through blocks")
    pieces = []
    for first, count in runs:
        piece = _part(whole, first, count)
        if piece is None:
            pin(whole, why)
            return False
        pieces.append(piece)
    others = [space for i, space in enumerate(source) if i != axis]
    rest = list(result)
    if grid.ndim:
        unify(rest.pop(axis), sum_of(pieces), why)
    for a, b in zip(others, rest, strict=True):
        unify(a, b, why)
    builder.spaces_of(indices)
    builder.picks[node] = (whole, grid, (sum_of(pieces),) if grid.ndim else ())
    return True


def _picked(node: Node) -> tuple[int, Array] | None:
    """Returns the axis that constant indices pick from, and the positions, i64[result axes…]."""
    x, indices = node.inputs[:2]
    if x is None or x.shape is None or node.output.shape is None:
        return None
    found = constant_of(indices, max_bytes=1 << 16)
    if found is None or found.size == 0:
        return None
    axis = 0
    if node.op is gather:
        axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    elif node.attrs["batch_dims"] or found.ndim == 0 or found.shape[-1] != 1:
        return None
    else:
        found = found[..., 0]
    size = x.shape[axis]
    if not isinstance(size, int):
        return None
    grid = np.where(found < 0, found + size, found).astype(np.int64)
    return None if grid.min() < 0 or grid.max() >= size else (axis, grid)


def _tie_loops(
    builder: Builder, node: Node, picked: tuple[Space, int, Array], loops: list[Loop]
) -> None:
    """Ties the source axis, and the result axes of the indices, by the loops of an index map."""
    whole, axis, grid = picked
    x, indices = node.inputs[:2]
    assert x is not None, "the caller saw it"
    assert indices is not None, "the caller saw it"
    why = Pin(node.op.name, _name(node), f"x axis {axis}", "its blocks do not nest with others")
    copies = Pin(node.op.name, _name(node), "indices", "copies")
    spaces = {
        loop: Space(loop.count, None if loop.stride else copies) for loop in dict.fromkeys(loops)
    }
    inner_last = sorted((loop for loop in loops if loop.stride), key=lambda loop: -loop.stride)
    unify(whole, product_of([spaces[loop] for loop in inner_last]), why)
    made = tuple(
        product_of([spaces[loop] for loop in loops if loop.axis == place])
        for place in range(grid.ndim)
    )
    source, result = builder.spaces_of(x), builder.spaces_of(node.output)
    for space, own in zip(result[axis : axis + grid.ndim], made, strict=True):
        unify(space, own, why)
    others = [*source[:axis], *source[axis + 1 :]]
    rest = [*result[:axis], *result[axis + grid.ndim :]]
    for a, b in zip(others, rest, strict=True):
        unify(a, b, why)
    builder.spaces_of(indices)
    builder.picks[node] = (whole, grid, made)


def _name(node: Node) -> str:
    return next((value.name for value in node.outputs if value.name), None) or ""


def _runs(positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """Returns (first position, count) of every run of consecutive positions."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    parts = np.split(positions, breaks)
    return [(int(part[0]), len(part)) for part in parts]


def _part(space: Space, first: int, count: int) -> Space | None:
    """Returns the space of some consecutive positions, refining; None where blocks would break."""
    if first:
        pieces = cut(space, first)
        if pieces is None:
            return None
        space = pieces[1]
    if count == space.size:
        return space
    pieces = cut(space, count)
    return None if pieces is None else pieces[0]


def tie_tile(builder: Builder, node: Node) -> bool:
    """Ties a tile: each axis is copies of the source's."""
    x, repeats = node.inputs[0], node.attrs["repeats"]
    if x is None or x.shape is None or node.output.shape is None or repeats is None:
        return False
    for i, (a, b) in enumerate(
        zip(builder.spaces_of(x), builder.spaces_of(node.output), strict=True)
    ):
        why = Pin(node.op.name, _name(node), f"axis {i}", "its copies cut through blocks")
        copies = Space(repeats[i], Pin(node.op.name, _name(node), f"axis {i}", "copies"))
        unify(b, product_of([copies, a]), why)
    return True


def tie_pad(builder: Builder, node: Node) -> bool:
    """Ties a pad by a constant: what is added stays, what was there may go."""
    x, pads, axes = node.inputs[0], node.attrs["pads"], node.attrs["axes"]
    if x is None or x.shape is None or node.output.shape is None or pads is None:
        return False
    if node.attrs["mode"] != "constant" or node.operand("axes") is not None:
        return False
    rank = len(x.shape)
    where = range(rank) if axes is None else [axis % rank for axis in axes]
    widths = {axis: (pads[i], pads[i + len(where)]) for i, axis in enumerate(where)}
    if any(not isinstance(width, int) or width < 0 for ends in widths.values() for width in ends):
        return False
    for i, (a, b) in enumerate(
        zip(builder.spaces_of(x), builder.spaces_of(node.output), strict=True)
    ):
        added = Pin(node.op.name, _name(node), f"axis {i}", "padding")
        before, after = (Space(width, added) for width in widths.get(i, (0, 0)))
        unify(b, sum_of([before, a, after]), added)
    return True
