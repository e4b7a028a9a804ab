"""Finds attention: what the queries, keys and values are, and what stands between them.

The result says everything that `attention` needs: which axes are batch, heads, positions and head
size in whatever layout the operands have, the scale, the masks, the groups of query heads that share
keys. Names and exporters play no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, attention, functions, softmax
from regraft.ir.types import DType
from regraft.passes.analysis.attention_masks import ALL, MaskReader, Masks, Window, joined
from regraft.passes.analysis.attention_scores import (
    Cond,
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
        is_canonical: Whether it is one operator that says all of this already.
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
    is_canonical: bool = False
    is_channel: bool = False
    problem: str = ""

    @property
    def num_heads(self) -> DimLike:
        """Query heads, windows not counted."""
        return size_of(self.layout.heads[len(self.layout.windows) :])

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
            if isinstance(site, Node):
                each = from_operator(site, reader)
            else:
                each = self._at(site, data, reader)
            if each is not None:
                found.append(each)
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


def _sites(graph: Graph) -> Iterator[Site | Node]:
    for node in graph:
        if node.op is attention.attention:
            yield node
        elif node.op in _ROOTS:
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
    ways_out = _ways_out(total.product.node, output_axes)
    heads = _heads(ways_out, channels, rest, q, inner, scores.axes)
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
        is_channel=_is_channel(layout, ways_out, k),
        problem=problem,
    )
    result.problem = result.problem or _misfit(result)
    return result


def from_operator(node: Node, reader: MaskReader) -> Attention | None:
    """Reads an `attention` operator, whose operands may still repeat heads or hide a window."""
    q_in, k_in, v_in, mask, lengths, sinks, offset = node.inputs
    if q_in is None or k_in is None or v_in is None:
        return None
    if None in (q_in.shape, k_in.shape, v_in.shape):
        return None
    attrs = node.attrs
    q, k, v = view_of(q_in, scales=True), view_of(k_in, scales=True), view_of(v_in)
    groups = [] if attrs["kv_groups"] == 1 else [Atom(attrs["kv_groups"])]
    pairs = (
        (q.axes[0], k.axes[0]), (q.axes[1], [*k.axes[1], *groups]), (q.axes[3], k.axes[3]),
        (v.axes[0], k.axes[0]), (v.axes[1], k.axes[1]), (v.axes[2], k.axes[2]),
    )  # fmt: skip
    fits = all(unify(a, b) for a, b in pairs)
    batch, heads, rows = (leaves(axis) for axis in q.axes[:3])
    keys, inner, channels = leaves(k.axes[2]), leaves(q.axes[3]), leaves(v.axes[3])
    kv_heads = _kv_heads(heads, k.atoms(), v.atoms()) if fits else heads
    layout = Layout(batch, heads, kv_heads, rows, keys, inner, channels)
    axes: Axes = [batch, heads, rows, keys]
    terms = [] if mask is None or mask.shape is None else [_operand_term(mask, axes)]
    is_bool = mask is not None and mask.dtype is DType.BOOL
    is_early = attrs["mask_before_softcap"] and not is_bool
    masks = reader.read(
        [Cond(term, False, -math.inf) for term in terms] if is_bool else [],
        [] if is_bool or is_early else terms,
        rows,
        keys,
        (size_of(rows), size_of(keys)),
    )
    static: DimLike | None = attrs["causal_offset"]
    own = ALL if static is None else Window(static, *attrs["window"])
    window = joined(masks.window, own)
    improves = (
        layout.kv_groups != attrs["kv_groups"] or masks.num_read > 0 or q.scale * k.scale != 1.0
    )
    is_fixed = lengths is not None or offset is not None or window is None or not fits
    masks.window = own if window is None else window
    result = Attention(
        output=node.outputs[0],
        output_axes=[batch, heads, rows, channels],
        q=q,
        k=k,
        v=v,
        layout=layout,
        scale=attrs["scale"] * q.scale * k.scale,
        softcap=attrs["softcap"],
        early=terms if is_early else [],
        masks=masks,
        sinks=None if sinks is None else Term(sinks, [heads]),
        softmax_dtype=attrs["softmax_dtype"],
        is_guarded=True,
        nodes=(node,),
        is_canonical=is_fixed or not improves or q.scale * k.scale <= 0,
    )
    if not result.is_canonical:
        result.is_canonical = bool(_misfit(result))
    return result


def _operand_term(value: Value, axes: Axes) -> Term:
    shape = value.shape or ()
    own = axes[len(axes) - len(shape) :]
    return Term(value, [[] if dim == 1 else a for dim, a in zip(shape, own, strict=True)])


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


def _ways_out(node: Node, axes: Axes) -> list[Axes]:
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


def _heads(
    ways_out: list[Axes],
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
    if len(score_axes) >= 4:
        middle = leaves(score_axes[-3])
        if set(middle) <= set(rest):
            return middle
    return []


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
        batch[:cut],
        heads,
        heads,
        layout.rows,
        layout.keys,
        layout.inner,
        layout.channels,
        batch[cut:],
    )


def _without_zeroed(scores: Scores, total: Sum) -> list[Cond] | None:
    """Returns the conditions; one whose weights are set to 0 as well hides its keys altogether.

    None when weights are set to 0 where no score is hidden.
    """
    conds = list(scores.conds)
    for zeroed in total.zeroed:
        for i, cond in enumerate(conds):
            if cond.term.value is zeroed.term.value and cond.hides == zeroed.hides:
                conds[i] = Cond(cond.term, cond.hides, -math.inf)
                break
        else:
            return None
    return conds


def _is_channel(layout: Layout, ways_out: list[Axes], k: View) -> bool:
    """Whether queries and keys are channels: they share an axis with the heads, positions do not."""
    if not layout.heads:
        return False
    heads = set(layout.heads)
    for axis in (axis for axes in ways_out for axis in axes):
        atoms = set(leaves(axis))
        if atoms & heads and atoms & set(layout.rows) and not atoms & set(layout.channels):
            return atoms <= heads | set(layout.rows)
    for axis in k.base_axes:
        atoms = set(leaves(axis))
        if atoms & set(layout.keys) and atoms & heads and not atoms & set(layout.inner):
            return atoms <= heads | set(layout.keys)
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
        view = view_of(a.sinks.value)
        if not align(view, a.sinks) or not view.atoms() <= set(layout.heads):
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
