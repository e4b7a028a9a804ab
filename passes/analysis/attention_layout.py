"""What the axes of attention mean: batch, heads, positions, channels, in any layout."""

from __future__ import annotations

from dataclasses import dataclass, field

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node
from regraft.passes.analysis.attention_masks import Masks
from regraft.passes.analysis.views import (
    Atom,
    Axes,
    Axis,
    View,
    is_movement,
    leaves,
    moved,
    size_of,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which atoms the axes of canonical attention consist of, outermost first.

    Attributes:
        batch: B.
        heads: H, of the queries.
        kv_heads: Those of `heads` that keys and values have: a prefix.
        rows: S.
        keys: T.
        inner: D, summed over in the scores.
        channels: E, of the values.
        windows: The first of `heads` that are windows of an image rather than heads.
    """

    batch: Axis
    heads: Axis
    kv_heads: Axis
    rows: Axis
    keys: Axis
    inner: Axis
    channels: Axis
    windows: Axis = field(default_factory=list)

    def resolved(self) -> Layout:
        """Returns the layout in leaf atoms, after some were split."""
        return Layout(
            leaves(self.batch),
            leaves(self.heads),
            leaves(self.kv_heads),
            leaves(self.rows),
            leaves(self.keys),
            leaves(self.inner),
            leaves(self.channels),
            leaves(self.windows),
        )

    @property
    def kv_groups(self) -> DimLike:
        """Query heads per key head."""
        return size_of(self.heads[len(self.kv_heads) :])


def keys_operand(
    a: tuple[str | None, ...],
    b: tuple[str | None, ...],
    out: tuple[str | None, ...],
    views: list[View],
    keys: list[Atom],
) -> int | None:
    """Returns which operand has the keys' positions and the other has not."""
    has = []
    for labels, view in zip((a, b), views, strict=True):
        kept = {
            leaf
            for label, axis in zip(labels, view.axes, strict=True)
            if label in out
            for leaf in leaves(axis)
        }
        has.append(bool(keys) and set(keys) <= kept)
    if has[0] == has[1]:
        return None
    return 0 if has[0] else 1


def summed_atoms(
    labels: tuple[str | None, ...], out: tuple[str | None, ...], axes: Axes
) -> list[Atom]:
    """Returns the atoms of the axes that a product sums over."""
    return [
        leaf
        for label, axis in zip(labels, axes, strict=True)
        if label is not None and label not in out
        for leaf in leaves(axis)
    ]


def ways_out_of(node: Node, axes: Axes) -> list[Axes]:
    """Returns the axes of a result, and of what it becomes while data only moves."""
    value = node.outputs[0]
    found = [axes]
    while True:
        users = value.users
        if len(users) != 1 or value.num_uses != 1 or not is_movement(users[0]):
            return found
        after = moved(users[0], found[-1])
        if after is None:
            return found
        value = users[0].outputs[0]
        found.append(after)


def find_heads(
    ways_out: list[Axes],
    channels: list[Atom],
    rest: list[Atom],
    q: View,
    inner: list[Atom],
    score_axes: Axes,
) -> list[Atom]:
    """Returns the atoms of the heads: those that share an axis with the channels.

    On the way out heads and channels are merged; on the way in, heads and head size are split
    from one axis. Where neither happens, the axis before the positions of a rank 4 score holds
    the heads.
    """
    for axes in ways_out:
        for axis in axes:
            atoms = leaves(axis)
            if channels and atoms[-len(channels) :] == channels and len(atoms) > len(channels):
                heads = atoms[: -len(channels)]
                if set(heads) < set(rest) or (set(heads) == set(rest) and len(axes) > 1):
                    return heads
    for axis in q.base_axes:
        atoms = leaves(axis)
        if inner and set(inner) < set(atoms) and atoms[-len(inner) :] == inner:
            heads = atoms[: -len(inner)]
            if set(heads) <= set(rest):
                return heads
    if len(score_axes) < 4:
        return []
    middle = leaves(score_axes[-3])
    last = ways_out[-1]
    if leaves(last[-1]) == channels and any(
        set(middle) & set(axis) and set(axis) - set(middle) for axis in map(leaves, last)
    ):
        return []  # windows: they are put back between positions, and one head has all channels
    return middle if set(middle) <= set(rest) else []


def find_kv_heads(heads: list[Atom], in_k: set[Atom], in_v: set[Atom]) -> list[Atom]:
    """Returns the heads that keys and values have; all when they are not the same first ones."""
    kept_k = [atom for atom in heads if atom in in_k]
    kept_v = [atom for atom in heads if atom in in_v]
    fits = kept_k == kept_v == heads[: len(kept_k)]
    return kept_k if fits and isinstance(size_of(heads[len(kept_k) :]), int) else list(heads)


def with_mask_axes(layout: Layout, masks: Masks) -> Layout:
    """Moves inner batch atoms that a mask has without the outer ones to the heads.

    Windows of an image have masks of their own: [windows, heads, S, T] broadcasts over the batch,
    while [batch, windows] folded into one axis would need a copy per image.
    """
    batch = layout.batch
    cut = len(batch)
    for term in (*masks.terms, *(c.term for c in (*masks.conds, *masks.soft))):
        has = {leaf for axis in term.axes for leaf in leaves(axis)}
        own = [atom in has for atom in batch]
        if any(own) and not all(own):
            cut = min(cut, own.index(True))
    if cut == len(batch) or len(layout.kv_heads) != len(layout.heads):
        return layout
    heads = [*batch[cut:], *layout.heads]
    return Layout(
        batch[:cut],
        heads,
        heads,
        layout.rows,
        layout.keys,
        layout.inner,
        layout.channels,
        batch[cut:],
    )


def mixes_channels(layout: Layout, ways_out: list[Axes], k: View) -> bool:
    """Whether queries and keys are channels: they share an axis with the heads."""
    if not layout.heads:
        return False
    heads, channels = set(layout.heads), set(layout.channels)
    out = [set(leaves(axis)) for axes in ways_out for axis in axes]
    if any(atoms & heads and atoms & channels for atoms in out):
        return False  # heads and channels are merged; rows of a group of heads may be one axis
    for atoms in out:
        if atoms & heads and atoms & set(layout.rows) and not atoms & channels:
            return atoms <= heads | set(layout.rows)
    for axis in k.base_axes:
        atoms = set(leaves(axis))
        if atoms & set(layout.keys) and atoms & heads and not atoms & set(layout.inner):
            return atoms <= heads | set(layout.keys)
    return False
