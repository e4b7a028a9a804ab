"""The form of a derived weight in which what is selected stands next to what it is selected from.

A pass that drops positions of `transpose(w)` records a gather of the transpose. `selected_first`
gives the same tensor as the transpose of a gather of `w`: the small tensor in the layout of the
checkpoint, which `forward` of a generated module rearranges as the original did. Readers of one
tensor that keep the same positions then speak of equal trees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regraft.ir.steps import (
    Add,
    Cast,
    Concat,
    Div,
    Gather,
    Mul,
    Permute,
    Reshape,
    Slice,
    Sqrt,
    Transpose,
    Tree,
    describe,
)

Positions = tuple[int, ...]


def selected_first(tree: Tree) -> Tree:
    """Returns the tree with selections moved below rearrangements, and these joined.

    Cost: O(steps) and O(positions) of each selection.
    """
    match tree:
        case Transpose(x, perm):
            return _transposed(selected_first(x), perm)
        case Reshape(x, shape):
            return _reshaped(selected_first(x), shape)
        case Slice(x, axis, start, stop, step):
            inner = selected_first(x)
            if isinstance(inner, Transpose):
                part = Slice(inner.x, inner.perm[axis], start, stop, step)
                return _transposed(selected_first(part), inner.perm)
            return Slice(inner, axis, start, stop, step)
        case Gather(x, axis, order) | Permute(x, axis, order):
            inner = selected_first(x)
            if len(set(order)) < len(order):
                return replace(tree, x=inner)  # repeated: the tensor itself is the smaller one
            return _selected(inner, axis, order)
        case Concat(xs, axis):
            return Concat(tuple(map(selected_first, xs)), axis)
        case Add(a, b) | Mul(a, b) | Div(a, b):
            return _joined(tree, selected_first(a), selected_first(b))
        case Cast(x, _) | Sqrt(x):
            whole = selected_first(x)
            if isinstance(whole, Transpose):
                return Transpose(replace(tree, x=whole.x), whole.perm)
            return replace(tree, x=whole)
        case _:
            return tree


def _transposed(x: Tree, perm: tuple[int, ...]) -> Tree:
    if isinstance(x, Transpose):
        before = x.perm
        x, perm = x.x, tuple(before[axis] for axis in perm)
    return x if perm == tuple(range(len(perm))) else Transpose(x, perm)


def _reshaped(x: Tree, shape: tuple[int, ...]) -> Tree:
    if isinstance(x, Reshape):
        x = x.x
    return x if describe(x)[1] == shape else Reshape(x, shape)


def _joined(tree: Add | Mul | Div, a: Tree, b: Tree) -> Tree:
    """`T(a) * b` -> `T(a * T⁻¹(b))`: elements stay beside each other."""
    if isinstance(a, Transpose) and describe(a)[1] == describe(tree)[1]:
        rank, own = len(a.perm), describe(b)[1]
        wide = _reshaped(b, (1,) * (rank - len(own)) + own)
        back = tuple(int(axis) for axis in np.argsort(a.perm))
        return Transpose(replace(tree, a=a.x, b=_transposed(wide, back)), a.perm)
    return replace(tree, a=a, b=b)


def _selected(x: Tree, axis: int, order: Positions) -> Tree:
    """Returns distinct positions of one axis of a tree that is in this form."""
    if order == tuple(range(describe(x)[1][axis])):
        return x
    match x:
        case Transpose(inner, perm):
            return Transpose(_selected(inner, perm[axis], order), perm)
        case Reshape(inner, shape):
            pushed = _of_reshaped(inner, shape, axis, order)
            return Gather(x, axis, order) if pushed is None else pushed
        case Gather(inner, own, before) | Permute(inner, own, before):
            if own == axis:
                return _selected(inner, axis, tuple(before[idx] for idx in order))
            if len(set(before)) == len(before) and axis < own:  # lower axes first
                return Gather(_selected(inner, axis, order), own, before)
        case Slice(inner, own, start, _, step):
            if own == axis:
                return _selected(inner, axis, tuple(start + idx * step for idx in order))
            return replace(x, x=_selected(inner, axis, order))
        case Concat(xs, own):
            parts = _of_parts(xs, own, axis, order)
            if parts is not None:
                return Concat(parts, own)
    return Gather(x, axis, order)


def _of_parts(
    xs: tuple[Tree, ...], own: int, axis: int, order: Positions
) -> tuple[Tree, ...] | None:
    """Returns joined tensors with positions selected, None where those of one are not together."""
    if axis != own:
        return tuple(_selected(x, axis, order) for x in xs)
    parts, done, first = [], 0, 0
    for x in xs:
        last = first + describe(x)[1][axis]
        stop = done
        while stop < len(order) and first <= order[stop] < last:
            stop += 1
        parts.append(_selected(x, axis, tuple(idx - first for idx in order[done:stop])))
        done, first = stop, last
    return tuple(parts) if done == len(order) else None


def _of_reshaped(x: Tree, shape: tuple[int, ...], axis: int, order: Positions) -> Tree | None:
    """Returns positions of a reshaped tensor as such of the tensor, None where they are none.

    An axis that the reshape splits is selected in whole; axes that it merges, if the positions are
    all combinations of some of each.
    """
    before = describe(x)[1]
    found = _factors(before, shape, axis)
    if found is None:
        return None
    (first, last), (start, stop) = found
    taken = np.arange(math.prod(shape[start:stop])).reshape(shape[start:stop])
    taken = np.take(taken, order, axis - start)
    after = (*shape[:axis], len(order), *shape[axis + 1 :])
    places = np.unravel_index(taken.reshape(-1), before[first:last])
    kept = [np.array(list(dict.fromkeys(place.tolist())), np.int64) for place in places]
    if math.prod(map(len, kept)) != taken.size:
        return None
    grid = np.meshgrid(*kept, indexing="ij")
    if not all(np.array_equal(a.reshape(-1), b) for a, b in zip(grid, places, strict=True)):
        return None
    for idx, positions in enumerate(kept):
        x = _selected(x, first + idx, tuple(positions.tolist()))
    return _reshaped(x, after)


def _factors(
    before: Sequence[int], after: Sequence[int], axis: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns the least ranges of axes, one of them with `axis`, that hold the same elements."""
    i = j = 0
    while i < len(before) and j < len(after):
        first, start = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right, j = right * after[j], j + 1
            else:
                return None
        if start <= axis < j:
            return (first, i), (start, j)
    return None
