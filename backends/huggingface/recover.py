"""Checkpoint tensors from the weights that follow from them: what is kept of every axis.

Weights record how they were made. The tensor of a smaller model is the old one at the positions
that are left, in the old order. Where values changed on the way (a scale that was folded in, the
`w + 1` of a norm), the old values are right as long as the model computes that step itself: such
tensors are in doubt until the written model is run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight, derive
from regraft.ir.module import Module
from regraft.ir.origins import Relation, origins_of
from regraft.ir.stacked import StackedWeight
from regraft.ir.steps import (
    Cast,
    Gather,
    Permute,
    Slice,
    Source,
    Transpose,
    Tree,
    describe,
    sources,
)
from regraft.ir.types import DType
from regraft.ir.weights import ArrayWeight, Role, Weight

Array = np.ndarray[Any, Any]
Kept = tuple[Array, ...]
"""Kept positions of every axis, ascending."""


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A tensor of the checkpoint as it is now.

    Args:
        weight: The tensor as it was loaded, or as training made it.
        kept: Kept positions of every axis.
        dtype: Element type to write.
        full: Sizes before anything was dropped.
        is_placed: Whether the kept positions are known; of a tensor that was trained after it had
            become smaller only the sizes are.
        doubt: Why the old values may not be what the module computes with, empty when they are.
    """

    weight: Weight
    kept: Kept
    dtype: DType
    full: tuple[int, ...]
    is_placed: bool
    doubt: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes to write."""
        return tuple(len(positions) for positions in self.kept)

    def result(self, name: str) -> Weight:
        """Returns the tensor to write; nothing is read yet."""
        tree: Tree = Source(name, self.weight)
        for axis, (positions, size) in enumerate(zip(self.kept, self.weight.shape, strict=True)):
            if len(positions) < size:
                tree = _take(tree, axis, positions)
        if self.dtype is not self.weight.dtype:
            tree = Cast(tree, self.dtype)
        return self.weight if isinstance(tree, Source) else DerivedWeight(tree)


@dataclass(slots=True)
class Recovery:
    """What the weights of a module say about the checkpoint.

    Attributes:
        tensors: Tensors by name in the model.
        lost: Why a tensor cannot be written, by name.
        folded: Where the values of a tensor went that no weight follows from any more, by name.
        added: Parameters that follow from no tensor of the checkpoint.
    """

    tensors: dict[str, Recovered] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """Everything that stored weights hold of one tensor."""

    weights: list[Weight] = field(default_factory=list)
    dtypes: list[DType] = field(default_factory=list)
    positions: list[Kept | Array] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def recover(
    module: Module, shapes: Mapping[str, tuple[int, ...]], apart: frozenset[str] = frozenset()
) -> Recovery:
    """Returns what is known of the checkpoint's tensors.

    Args:
        module: The module.
        shapes: Sizes in the checkpoint, by name in the model.
        apart: Weights that are written by other means.

    Cost: O(steps); of reshaped tensors an i64 per element.
    """
    recovery = Recovery()
    found: dict[str, _Found] = {}
    for name in module.weights:
        if name in apart:
            continue
        weight = module.weights[name]
        tree = derive(name, weight)
        known = {source.name for source in sources(tree)} & shapes.keys()
        if not known:
            made_from = _made_from(weight) & shapes.keys()
            for source in made_from:
                recovery.folded.setdefault(source, f"its values went into `{name}` for good")
            if not made_from and module.weights.role(name) is Role.PARAM:
                recovery.added.append(name)
            continue
        _collect(name, tree, weight.dtype, known, found)
    for name, item in found.items():
        made = _joined(item, shapes[name])
        if isinstance(made, str):
            recovery.lost.setdefault(name, made)
        else:
            recovery.tensors[name] = made
    for name in (*recovery.tensors, *recovery.lost):
        recovery.folded.pop(name, None)
    return recovery


def _made_from(weight: Weight) -> set[str]:
    if isinstance(weight, DerivedWeight):
        return {n for source in sources(weight.tree) for n in _made_from(source.weight)}
    return set(weight.made_from) if isinstance(weight, ArrayWeight | StackedWeight) else set()


def _collect(
    stored: str, tree: Tree, dtype: DType, known: set[str], found: dict[str, _Found]
) -> None:
    """Notes what one stored weight holds of the tensors it follows from."""
    moved = _without_casts(tree)
    path = _path(moved)
    if path is not None:
        source, kept = path
        doubt = "it was trained in another form" if _made_from(source.weight) else ""
        _note(found, source, dtype, kept, doubt)
        return
    by_name = {source.name: source for source in sources(moved)}
    for origin in origins_of(moved):
        if origin.source not in known:
            continue
        source, doubt = by_name[origin.source], ""
        positions: Array = np.unique(origin.positions)
        if origin.relation is not Relation.EXACT:
            doubt = f"`{stored}` holds other values: {origin.reason}"
        if origin.relation is Relation.MIXED:
            positions = np.arange(math.prod(origin.shape))
        _note(found, source, source.weight.dtype if doubt else dtype, positions, doubt)


def _note(
    found: dict[str, _Found], source: Source, dtype: DType, positions: Kept | Array, doubt: str
) -> None:
    item = found.setdefault(source.name, _Found())
    item.weights.append(source.weight)
    item.dtypes.append(dtype)
    item.positions.append(positions)
    item.doubts += [doubt] if doubt else []


def _without_casts(tree: Tree) -> Tree:
    """Returns a tree without casts between floats: they are made again when it is written."""
    if isinstance(tree, Cast) and tree.dtype.is_float and describe(tree.x)[0].is_float:
        return _without_casts(tree.x)
    changes: dict[str, Any] = {}
    for item in fields(tree):
        value = getattr(tree, item.name)
        if isinstance(value, Tree):
            changes[item.name] = _without_casts(value)
        elif item.name == "xs":
            changes["xs"] = tuple(_without_casts(x) for x in value)
    return replace(tree, **changes) if changes else tree


def _path(tree: Tree) -> tuple[Source, Kept] | None:
    """Returns source and kept positions of a tree that treats every axis by itself."""
    match tree:
        case Source(_, weight):
            return tree, tuple(np.arange(size) for size in weight.shape)
        case Slice(x, axis, start, stop, step):
            chosen: Any = slice(start, stop, step)
        case Gather(x, axis, order) | Permute(x, axis, order):
            if len(set(order)) < len(order):
                return None  # repeated positions
            chosen = np.array(order, np.int64)
        case Transpose(x, _):
            axis, chosen = 0, slice(None)
        case _:
            return None
    inner, source_axes = _path(x), _source_axes(x)
    if inner is None or source_axes is None:
        return None
    source, kept = inner
    at = source_axes[axis] if kept else 0
    # the order of positions is that of the checkpoint again: all tensors of an axis agree in it
    return source, tuple(
        np.asarray(each[chosen]) if i == at else each for i, each in enumerate(kept)
    )


def _source_axes(tree: Tree) -> tuple[int, ...] | None:
    """Returns which axis of the source every axis of the tree is."""
    match tree:
        case Source(_, weight):
            return tuple(range(len(weight.shape)))
        case Transpose(x, perm):
            inner = _source_axes(x)
            return None if inner is None else tuple(inner[axis] for axis in perm)
        case Slice(x) | Gather(x) | Permute(x):
            return _source_axes(x)
        case _:
            return None


def _joined(item: _Found, full: tuple[int, ...]) -> Recovered | str:
    """Returns the tensor that several stored weights hold together, or why there is none."""
    weight = item.weights[0]
    if any(other is not weight for other in item.weights):
        return "weights that were one tensor have different values now"
    if len(set(item.dtypes)) > 1:
        return f"its parts have the types {', '.join(sorted({d.value for d in item.dtypes}))}"
    shape = weight.shape
    if len(shape) != len(full) or any(a > b for a, b in zip(shape, full, strict=True)):
        return f"it is {list(shape)}, and was {list(full)}"
    kept = _union(item.positions, shape)
    if kept is None:
        return "the positions that are left are no rows and columns"
    return Recovered(weight, kept, item.dtypes[0], full, shape == full, "; ".join(item.doubts[:1]))


def _union(parts: Sequence[Kept | Array], shape: tuple[int, ...]) -> Kept | None:
    """Returns the kept positions of every axis, None when they leave holes."""
    first = parts[0]
    if len(parts) == 1 and isinstance(first, tuple):
        return tuple(np.sort(positions) for positions in first)
    mask = np.zeros(shape, np.bool_)
    for part in parts:
        if isinstance(part, tuple):
            mask[np.ix_(*part)] = True
        else:
            mask.reshape(-1)[part] = True
    kept = tuple(
        np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        for axis in range(mask.ndim)
    )
    return kept if int(mask.sum()) == math.prod(map(len, kept)) else None


def _take(tree: Tree, axis: int, positions: Array) -> Tree:
    first, count = int(positions[0]), len(positions)
    if int(positions[-1]) - first == count - 1:
        return Slice(tree, axis, first, first + count)
    return Gather(tree, axis, tuple(positions.tolist()))
