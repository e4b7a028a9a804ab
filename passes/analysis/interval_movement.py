"""How bounds go through data movement, reductions and pools; see `intervals`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from regraft.ir.graph import Node
from regraft.ir.ops import gathering, pool, reduce, repeating, reshaping, resize, slicing
from regraft.ir.opspec import OpSpec
from regraft.passes.analysis.bounds import (
    Bounds,
    IntervalRule,
    Operands,
    at_rank,
    between,
    needed,
    widened,
)


def _transpose(node: Node, operands: Operands) -> Bounds | None:
    x, perm = needed(operands, 0), node.attrs["perm"]
    return Bounds(x.low.transpose(perm), x.high.transpose(perm))


def _reshape(node: Node, operands: Operands) -> Bounds | None:
    """Bounds by trailing axes follow where the trailing axes hold the same elements."""
    x, new = needed(operands, 0), node.output.shape
    old = node.inputs[0].shape if node.inputs[0] is not None else None
    if old is None or new is None:
        return None
    kept = [axis for axis in range(len(old)) if x.low.shape[axis] != 1]
    first = min(kept, default=len(old))
    tail = old[first:]
    if not all(isinstance(size, int) for size in tail):
        tail, first = (), len(old)
        x = x.over()
    elif any(size != 1 for size in x.low.shape[:first]):
        x = x.over()
    total = prod(int(str(size)) for size in tail)
    count, taken = 1, len(new)
    while count < total and taken and isinstance(new[taken - 1], int):
        taken -= 1
        count *= int(str(new[taken]))
    if count != total:
        return at_rank(Bounds(x.over().low.reshape(()), x.over().high.reshape(())), len(new))
    shape = (*(1,) * taken, *(int(str(size)) for size in new[taken:]))
    ends = []
    for end in (x.low, x.high):
        lead = end.shape[:first]
        whole = np.broadcast_to(end, (*lead, *(int(str(size)) for size in tail)))
        ends.append(whole.reshape(shape))
    return Bounds(*ends)


def _squeeze(node: Node, operands: Operands) -> Bounds | None:
    x, axes = needed(operands, 0), node.attrs["axes"]
    if axes is None:
        return None
    places = tuple(axis % x.low.ndim for axis in axes)
    return Bounds(x.low.squeeze(places), x.high.squeeze(places))


def _unsqueeze(node: Node, operands: Operands) -> Bounds | None:
    x, axes = needed(operands, 0), node.attrs["axes"]
    if axes is None:
        return None
    places = tuple(axis % (node.output.rank or 1) for axis in axes)
    return Bounds(np.expand_dims(x.low, places), np.expand_dims(x.high, places))


def _expand(node: Node, operands: Operands) -> Bounds | None:
    return at_rank(needed(operands, 0), node.output.rank or 0)


def _part(node: Node, operands: Operands) -> Bounds | None:
    """Parts of axes: bounds over the whole of the axes that change."""
    x, old, new = needed(operands, 0), node.inputs[0], node.output
    if old is None or old.shape is None or new.shape is None:
        return None
    changed = tuple(i for i, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b)
    changed += tuple(
        i for i in range(len(old.shape)) if node.op is slicing.slice_ and x.low.shape[i] != 1
    )
    return x.over(tuple(dict.fromkeys(changed)))


def _concat(node: Node, operands: Operands) -> Bounds | None:
    found: Bounds | None = None
    axis = node.attrs["axis"]
    for operand in operands:
        if operand is not None:
            along = operand.over((axis % operand.low.ndim,))
            found = along if found is None else found.join(along)
    return found


def _gather(node: Node, operands: Operands) -> Bounds | None:
    x, rank = needed(operands, 0), node.output.rank or 0
    axis = node.attrs["axis"] % x.low.ndim
    count = rank - x.low.ndim + 1  # axes of the indices stand for the gathered one
    rows = x.over((axis,))
    shape = (*rows.low.shape[:axis], *(1,) * count, *rows.low.shape[axis + 1 :])
    return Bounds(rows.low.reshape(shape), rows.high.reshape(shape))


def _reduced(node: Node, operands: Operands) -> Bounds | None:
    """Means and extrema lie within what they are of."""
    x, axes = needed(operands, 0), node.static("axes")
    if axes is None and node.operand("axes") is not None:
        return None
    places = tuple(range(x.low.ndim) if axes is None else (int(a) % x.low.ndim for a in axes))
    found = x.over(places)
    if not node.attrs["keepdims"]:
        found = Bounds(found.low.squeeze(places), found.high.squeeze(places))
    return widened(found)


def _pooled(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    found = x.over(tuple(range(2, x.low.ndim)))
    is_mean = node.op is pool.average_pool and any(node.attrs["pads"] or ())
    return widened(found.join(between(0.0, 0.0, x.low.ndim)) if is_mean else found)


def _resize(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    if node.attrs["mode"] == "cubic" or node.attrs["coordinates"] == "tf_crop_and_resize":
        return None
    return widened(x.over(tuple(range(2, x.low.ndim)))) if x.low.ndim > 2 else None


def _pad(node: Node, operands: Operands) -> Bounds | None:
    x = needed(operands, 0)
    if node.attrs["mode"] != "constant":
        return x.over()
    filled = operands[2] if len(operands) > 2 else None
    whole = between(0.0, 0.0, x.low.ndim) if filled is None else at_rank(filled, x.low.ndim)
    return x.over().join(whole)


RULES: Mapping[OpSpec, IntervalRule] = {
    reshaping.transpose: _transpose,
    reshaping.reshape: _reshape,
    reshaping.squeeze: _squeeze,
    reshaping.unsqueeze: _unsqueeze,
    repeating.expand: _expand,
    slicing.slice_: _part,
    slicing.split: _part,
    slicing.concat: _concat,
    gathering.gather: _gather,
    reduce.reduce_mean: _reduced,
    reduce.reduce_max: _reduced,
    reduce.reduce_min: _reduced,
    pool.max_pool: _pooled,
    pool.average_pool: _pooled,
    pool.global_average_pool: _pooled,
    pool.global_max_pool: _pooled,
    resize.resize: _resize,
    repeating.pad: _pad,
}
