"""Ties of operators that copy positions by constant index: gather, gather_nd, tile, pad.

An index map falls into runs of consecutive positions; each run ties a part of the source axis with
a part of the result's. The indices are written anew when the source shrinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.graph import Node
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.shapes import normalize_axis
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

_MAX_RUNS = 64
"""An index map of more runs than this is taken for data, and pins the axis."""


def tie_gather(builder: Builder, node: Node) -> bool:
    """Ties a gather by constant indices of at most one axis; False where the rule must do."""
    x, indices = node.inputs[:2]
    if x is None or indices is None or x.shape is None or node.output.shape is None:
        return False
    found = constant_of(indices, max_bytes=1 << 16)
    if found is None or found.size == 0:
        return False
    axis, depth = 0, indices.rank or 0
    if node.op is gather:
        axis = normalize_axis(node, node.attrs["axis"], len(x.shape))
    else:
        if node.attrs["batch_dims"] or found.ndim == 0 or found.shape[-1] != 1:
            return False
        found, depth = found[..., 0], depth - 1
    if depth > 1 or not isinstance(x.shape[axis], int):
        return False
    source, result = builder.spaces_of(x), builder.spaces_of(node.output)
    whole = source[axis]
    positions = np.where(found < 0, found + x.shape[axis], found).reshape(-1)
    runs = _runs(positions)
    if len(runs) > _MAX_RUNS or positions.min() < 0 or positions.max() >= x.shape[axis]:
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
    if depth:
        unify(rest.pop(axis), sum_of(pieces), why)
    for a, b in zip(others, rest, strict=True):
        unify(a, b, why)
    builder.spaces_of(indices)
    builder.picks[node] = (whole, positions, sum_of(pieces) if depth else None)
    return True


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
