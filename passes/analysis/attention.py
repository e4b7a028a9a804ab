"""Finds attention: what the queries, keys and values are, and what stands between them.

The result says everything that `attention` needs: which axes are batch, heads, positions and head
size in whatever layout the operands have, the scale, the masks, the groups of query heads that share
keys. Names and exporters play no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, functions, softmax
from regraft.ir.types import DType
from regraft.passes.analysis.attention_masks import MaskReader, Masks
from regraft.passes.analysis.attention_scores import (
    Scores,
    Site,
    Sum,
    Term,
    find_path,
    find_sum,
    interior_escapes,
    read_scores,
    softmax_site,
)
from regraft.passes.analysis.dependence import data_values
from regraft.passes.analysis.views import (
    Atom,
    Axes,
    Axis,
    View,
    is_movement,
    leaves,
    moved,
    size_of,
    unify,
    view_of,
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
    """

    batch: Axis
    heads: Axis
    kv_heads: Axis
    rows: Axis
    keys: Axis
    inner: Axis
    channels: Axis

    @property
    def kv_groups(self) -> DimLike:
        """Query heads per key head."""
        return size_of(self.heads[len(self.kv_heads) :])


@dataclass(slots=True, eq=False)
class Attention:
    """One attention.

    Attributes:
        output: The weighted sum.
        output_axes: Its axes.
        q: Queries, without the scale.
        k: Keys.
        v: Values.
        layout: What the axes mean.
        scale: Factor of the products.
        softcap: Soft cap of the scores, 0 without.
        early: Terms added before the cap.
        scales: Tensors that the queries are multiplied by.
        masks: What hides keys or is added.
        sinks: A further score per head, without a value.
        softmax_dtype: Element type of the softmax when it differs.
        is_guarded: Whether a row without keys gives 0 rather than NaN.
        nodes: The nodes between queries, keys, values and the output, in graph order.
        is_channel: Whether it mixes channels, with positions summed over (cross-covariance).
        problem: Why the operator `attention` cannot stand for it, or "".
    """

    output: Value
    output_axes: Axes
    q: View
    k: View
    v: View
    layout: Layout
    scale: float
    softcap: float = 0.0
    early: list[Term] = field(default_factory=list)
    scales: list[Term] = field(default_factory=list)
    masks: Masks = field(default_factory=Masks)
    sinks: Term | None = None
    softmax_dtype: DType | None = None
    is_guarded: bool = False
    nodes: tuple[Node, ...] = ()
    is_channel: bool = False
    problem: str = ""

    @property
    def num_heads(self) -> DimLike:
        """Query heads."""
        return size_of(self.layout.heads)

    @property
    def head_size(self) -> DimLike:
        """Channels per query head."""
        return size_of(self.layout.inner)


_ROOTS = frozenset({softmax.softmax, arithmetic.div, arithmetic.mul, functions.exp})


class AttentionFinder:
    """Finds attention in graphs; one per analysis of a module."""

    def __init__(self) -> None:
        self._rejected: list[tuple[Value, str]] = []

    @property
    def rejected(self) -> list[tuple[Value, str]]:
        """Places with the skeleton of attention whose middle could not be read, with the reason."""
        return self._rejected

    def find(self, graph: Graph) -> list[Attention]:
        """Returns the attentions of one graph (bodies aside) in order."""
        sites = list(_sites(graph))
        if not sites:
            return []
        data = data_values(graph)
        reader = MaskReader(data)
        found = []
        for site in sites:
            attention = self._at(site, data, reader)
            if attention is not None:
                found.append(attention)
        return found

    def _at(self, site: Site, data: set[Value], reader: MaskReader) -> Attention | None:
        if site.logits not in data:
            return None
        path = find_path(site, data)
        if path is None:
            return None
        product, steps = path
        views = [view_of(product.operand(idx), scales=True) for idx in (0, 1)]
        scores = read_scores(product, (views[0].axes, views[1].axes), steps)
        if scores.problem:
            self._rejected.append((site.weights, scores.problem))
            return None
        total = find_sum(site, scores.axes, data, scores.sinks is not None)
        if total is None:
            return None
        return _assemble(site, scores, total, views, data, reader)


def _sites(graph: Graph) -> Iterator[Site]:
    for node in graph:
        if node.op in _ROOTS:
            site = softmax_site(node)
            if site is not None:
                yield site


def _assemble(
    site: Site,
    scores: Scores,
    total: Sum,
    views: list[View],
    data: set[Value],
    reader: MaskReader,
) -> Attention | None:
    product = scores.product
    keys = leaves(scores.axes[site.axis])
    k_idx = _keys_operand(product.a, product.b, product.out, views, keys)
    if k_idx is None or product.operand(k_idx) not in data:
        return None
    q, k = views[1 - k_idx], views[k_idx]
    values = total.product.operand(1 - total.idx)
    v = view_of(values)
    sides = (total.axes, v.axes) if total.idx == 0 else (v.axes, total.axes)
    output_axes = total.product.result_axes(*sides)
    if output_axes is None:
        return None
    keys = leaves(keys)
    inner = _summed(product.a, product.out, views[0].axes)
    rest = [leaf for axis in scores.axes for leaf in leaves(axis) if leaf not in keys]
    own = {*keys, *rest}
    channels = [leaf for axis in output_axes for leaf in leaves(axis) if leaf not in own]
    heads = _heads(total.product.node, output_axes, channels, rest, q, inner, scores.axes)
    in_k, in_v = k.atoms(), v.atoms()
    batch = [a for a in rest if a not in heads and (a in in_k or a in in_v)]
    rows = [a for a in rest if a not in heads and a not in batch]
    S, T = size_of(rows), size_of(keys)
    conds = _without_zeroed(scores, total)
    nodes = {*scores.nodes, *site.nodes, *total.nodes}
    problem = ""
    if conds is None:
        problem, conds = "weights are set to 0 by a condition that the scores do not have", []
    masks = reader.read(conds, scores.terms, rows, keys, (S, T))
    layout = Layout(batch, heads, _kv_heads(heads, in_k, in_v), rows, keys, inner, channels)
    layout = _with_mask_axes(layout, masks)
    if not problem and interior_escapes(nodes, total.product.node):
        problem = "its scores or weights are used elsewhere too"
    result = Attention(
        output=total.product.node.outputs[0],
        output_axes=output_axes,
        q=q,
        k=k,
        v=v,
        layout=layout,
        scale=scores.scale * q.scale * k.scale,
        softcap=scores.softcap,
        early=scores.early,
        scales=scores.scales,
        masks=masks,
        sinks=scores.sinks,
        softmax_dtype=scores.softmax_dtype,
        is_guarded=total.is_guarded,
        nodes=tuple(sorted(nodes, key=lambda node: node.order)),
        is_channel=_is_channel(layout, q, k),
        problem=problem,
    )
    result.problem = result.problem or _misfit(result)
    return result


def _keys_operand(
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


def _summed(
    labels: tuple[str | None, ...], out: tuple[str | None, ...], axes: Axes
) -> list[Atom]:
    return [
        leaf
        for label, axis in zip(labels, axes, strict=True)
        if label is not None and label not in out
        for leaf in leaves(axis)
    ]


def _heads(
    node: Node,
    axes: Axes,
    channels: list[Atom],
    rest: list[Atom],
    q: View,
    inner: list[Atom],
    score_axes: Axes,
) -> list[Atom]:
    """Returns the atoms of the heads: those that share an axis with the channels.

    On the way out heads and channels are merged; on the way in, heads and head size are split from
    one axis. Where neither happens, the axis before the positions of a rank 4 score holds the heads.
    """
    value = node.outputs[0]
    while True:
        for axis in axes:
            atoms = leaves(axis)
            if channels and atoms[-len(channels) :] == channels and len(atoms) > len(channels):
                heads = [atom for atom in atoms[: -len(channels)] if atom in rest]
                if heads and len(heads) == len(atoms) - len(channels):
                    return _not_folded(heads, rest, axes)
        users = value.users
        if len(users) != 1 or value.num_uses != 1 or not is_movement(users[0]):
            break
        after = moved(users[0], axes)
        if after is None:
            break
        value, axes = users[0].outputs[0], after
    for axis in q.base_axes:
        atoms = leaves(axis)
        if inner and set(inner) < set(atoms):
            heads = [atom for atom in atoms if atom not in inner]
            if set(heads) <= set(rest) and atoms[-len(inner) :] == inner:
                return heads
    if len(score_axes) >= 4:
        middle = [atom for axis in score_axes[-3:-2] for atom in leaves(axis)]
        if set(middle) <= set(rest):
            return middle
    return []


def _not_folded(heads: list[Atom], rest: list[Atom], axes: Axes) -> list[Atom]:
    """An axis that all atoms are folded into says nothing of heads."""
    return heads if len(heads) < len(rest) or len(axes) > 1 else []


def _kv_heads(heads: list[Atom], in_k: set[Atom], in_v: set[Atom]) -> list[Atom]:
    """Returns the heads that keys and values have; all when they are not the same first ones."""
    kept_k = [atom for atom in heads if atom in in_k]
    kept_v = [atom for atom in heads if atom in in_v]
    fits = kept_k == kept_v == heads[: len(kept_k)]
    return kept_k if fits and isinstance(size_of(heads[len(kept_k) :]), int) else list(heads)


def _with_mask_axes(layout: Layout, masks: Masks) -> Layout:
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
        batch[:cut], heads, heads, layout.rows, layout.keys, layout.inner, layout.channels
    )


def _without_zeroed(scores: Scores, total: Sum) -> list | None:  # type: ignore[type-arg]
    """Returns the conditions; one whose weights are set to 0 as well hides its keys altogether."""
    conds = list(scores.conds)
    for zeroed in total.zeroed:
        match = next(
            (
                i
                for i, cond in enumerate(conds)
                if cond.term.value is zeroed.term.value and cond.hides == zeroed.hides
            ),
            None,
        )
        if match is None:
            return None
        conds[match] = zeroed if conds[match].term.axes is None else _hardened(conds[match])
    return conds


def _hardened(cond):  # type: ignore[no-untyped-def]
    return type(cond)(cond.term, cond.hides, float("-inf"))


def _is_channel(layout: Layout, q: View, k: View) -> bool:
    """Whether the keys are channels: heads and keys were split from one axis of the operand."""
    if not layout.heads:
        return False
    for view in (q, k):
        for axis in view.base_axes:
            atoms = set(leaves(axis))
            if atoms & set(layout.inner):
                return False
    for axis in k.base_axes:
        atoms = set(leaves(axis))
        if atoms & set(layout.keys) and atoms & set(layout.heads):
            return True
    return False


def _misfit(a: Attention) -> str:
    """Returns why the operator cannot stand for it, or ""."""
    layout = a.layout
    if not isinstance(layout.kv_groups, int):
        return "the number of query heads per key head is known at run time only"
    if a.is_channel:
        return "it mixes channels: positions are summed over"
    known = {*layout.batch, *layout.heads, *layout.rows}
    for term in a.scales:
        atoms = {leaf for axis in term.axes for leaf in leaves(axis)}
        if not atoms <= known:
            return "scores are multiplied by a tensor that depends on the key"
    if a.q.base.dtype is None or a.q.base.dtype is not a.k.base.dtype:
        return "queries and keys have other element types"
    if a.v.base.dtype is not a.q.base.dtype:
        return "values have another element type than the queries"
    if a.early and a.masks.terms:
        return "terms are added before and after the soft cap"
    if a.early and (len(a.early) > 1 or a.masks.conds or a.masks.soft):
        return "several masks around the soft cap"
    if a.sinks is not None:
        atoms = [leaf for axis in a.sinks.axes for leaf in leaves(axis)]
        if atoms != layout.heads:
            return "the sinks are not one number per head"
    own = {*known, *layout.keys, *layout.inner, *layout.channels}
    for view, kinds in (
        (a.q, {*layout.batch, *layout.heads, *layout.rows, *layout.inner}),
        (a.k, {*layout.batch, *layout.heads, *layout.keys, *layout.inner}),
        (a.v, {*layout.batch, *layout.heads, *layout.keys, *layout.channels}),
    ):
        if not view.atoms() <= kinds or not kinds <= own:
            return "an operand has axes that attention lacks"
    return ""


def align(view: View, term: Term) -> bool:
    """Identifies the axes of a mask's view with the score axes; False when they do not fit."""
    return all(
        unify(own, axis)
        for own, axis in zip(view.axes, term.axes, strict=True)
        if axis and own
    )
