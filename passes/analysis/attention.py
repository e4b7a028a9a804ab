"""Finds attention: what the queries, keys and values are, and what stands between them.

The result says everything that `attention` needs: which axes are batch, heads, positions and head
size in whatever layout the operands have, the scale, the masks, the groups of query heads that
share keys. Names and exporters play no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, attention, functions, linalg, softmax
from regraft.ir.types import DType
from regraft.passes.analysis.attention_forms import OtherAttention
from regraft.passes.analysis.attention_found import Attention, misfit
from regraft.passes.analysis.attention_guards import guard_nodes
from regraft.passes.analysis.attention_layout import (
    Layout,
    find_heads,
    find_kv_heads,
    keys_operand,
    mixes_channels,
    summed_atoms,
    ways_out_of,
    with_mask_axes,
)
from regraft.passes.analysis.attention_masks import MaskReader, as_cond
from regraft.passes.analysis.attention_scores import Cond, Scores, Term, read_scores
from regraft.passes.analysis.attention_skeleton import Site, find_path, softmax_site
from regraft.passes.analysis.attention_weights import Sum, find_sum, interior_escapes
from regraft.passes.analysis.attention_windows import ALL, Window, joined
from regraft.passes.analysis.dependence import data_values
from regraft.passes.analysis.views import Atom, Axes, View, leaves, size_of, unify, view_of

_ROOTS = frozenset({softmax.softmax, arithmetic.div, arithmetic.mul, functions.exp})


class AttentionFinder:
    """Finds attention in graphs; one per analysis of a module."""

    def __init__(self) -> None:
        self._rejected: list[tuple[Value, str]] = []
        self._others: list[OtherAttention] = []

    @property
    def others(self) -> list[OtherAttention]:
        """Attention of talking heads, which mixes scores before the softmax."""
        return self._others

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
        if path is None or any(path[0].operand(idx) not in data for idx in (0, 1)):
            heads = _mixed_heads(site, data)
            if heads is not None:
                other = OtherAttention("talking_heads", site.weights, heads, site.nodes)
                self._others.append(other)
                self._rejected.append((site.weights, "the scores of several heads are mixed"))
                return None
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


def _mixed_heads(site: Site, data: set[Value]) -> DimLike | None:
    """Returns how many heads a linear map to the logits mixes (talking heads), or None."""
    value = view_of(site.logits).base
    for _ in range(2):  # the map, and its bias
        node = value.producer
        operands = [] if node is None else [v for v in node.inputs if v is not None and v in data]
        if node is None or len(operands) != 1 or node.op not in (arithmetic.add, linalg.matmul):
            return None
        value = view_of(operands[0]).base
        if node.op is linalg.matmul:
            inner = replace(site, logits=value)
            if value.rank != 4 or find_path(inner, data) is None:
                return None
            mixed = operands[0].shape or ()
            return mixed[-1 if operands[0] is node.inputs[0] else -2]
    return None


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
    k_idx = keys_operand(product.a, product.b, product.out, views, keys)
    if k_idx is None or product.operand(k_idx) not in data:
        return None
    q, k = views[1 - k_idx], views[k_idx]
    values = total.product.operand(1 - total.idx)
    v = view_of(values)
    sides = (total.axes, v.axes) if total.idx == 0 else (v.axes, total.axes)
    output_axes = total.product.result_axes(*sides)
    if output_axes is None:
        return None
    ways_out = ways_out_of(total.product.node, output_axes)  # may split atoms: lists come after
    keys = leaves(keys)
    inner = summed_atoms(product.a, product.out, views[0].axes)
    rest = [leaf for axis in scores.axes for leaf in leaves(axis) if leaf not in keys]
    own = {*keys, *rest}
    channels = [leaf for axis in output_axes for leaf in leaves(axis) if leaf not in own]
    heads = find_heads(ways_out, channels, rest, q, inner, scores.axes)
    in_k, in_v = k.atoms(), v.atoms()
    batch = [a for a in rest if a not in heads and (a in in_k or a in in_v)]
    rows = [a for a in rest if a not in heads and a not in batch]
    S, T = size_of(rows), size_of(keys)
    conds = _without_zeroed(scores, total, site)
    nodes = {*scores.nodes, *site.nodes, *total.nodes}
    problem = ""
    if conds is None:
        problem, conds = "weights are set to 0 by a condition that the scores do not have", []
    conds = [*conds, *_replaced_scores(scores, reader)]
    masks = reader.read(conds, scores.terms, rows, keys, (S, T))
    layout = Layout(batch, heads, find_kv_heads(heads, in_k, in_v), rows, keys, inner, channels)
    layout = with_mask_axes(layout, masks)
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
        factors=total.factors,
        masks=masks,
        sinks=scores.sinks,
        softmax_dtype=scores.softmax_dtype,
        is_guarded=total.is_guarded,
        nodes=tuple(sorted(nodes, key=lambda node: node.order)),
        is_channel=mixes_channels(layout, ways_out, k),
        problem=problem,
    )
    result.problem = result.problem or misfit(result)
    return result


def from_operator(node: Node, reader: MaskReader) -> Attention | None:
    """Reads an `attention` operator, whose operands may still repeat heads or hide a window."""
    q_in, k_in, v_in, mask, lengths, sinks, offset = node.inputs[:7]
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
    kv_heads = find_kv_heads(heads, k.atoms(), v.atoms()) if fits else heads
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
    is_fixed = is_fixed or attention.softmax_operands(node) is None
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
        result.is_canonical = bool(misfit(result))
    return result


def _operand_term(value: Value, axes: Axes) -> Term:
    shape = value.shape or ()
    own = axes[len(axes) - len(shape) :]
    return Term(value, [[] if dim == 1 else a for dim, a in zip(shape, own, strict=True)])


def _replaced_scores(scores: Scores, reader: MaskReader) -> list[Cond]:
    """Takes out `scores * m - 1e4 * (1 - m)`, and returns it as scores that a number replaces."""
    found = []
    for factor in list(scores.scales):
        for term in scores.terms:
            if reader.is_product(factor, term):
                scores.scales.remove(factor)
                scores.terms.remove(term)
                found.append(Cond(Term(term.value, term.axes), False, term.factor))
                break
    return found


def _without_zeroed(scores: Scores, total: Sum, site: Site) -> list[Cond] | None:
    """Returns the conditions; one whose weights are set to 0 as well hides its keys altogether.

    None when weights are set to 0 where no score is hidden. An added mask of such a condition goes
    from the terms of `scores` to the conditions.
    """
    conds = list(scores.conds)
    for zeroed in total.zeroed:
        guard = guard_nodes(zeroed, scores, site)
        if guard is not None:
            total.nodes.extend(guard)
            continue
        own = _hidden_alike(conds, scores, zeroed)
        if own is None:
            return None
        conds.append(Cond(own, zeroed.hides, -math.inf))
    return conds


def _hidden_alike(conds: list[Cond], scores: Scores, zeroed: Cond) -> Term | None:
    """Takes out the condition, or the added mask, that hides what `zeroed` sets to 0."""
    for cond in conds:
        if cond.term.value is zeroed.term.value and cond.hides == zeroed.hides:
            conds.remove(cond)
            return cond.term
    for term in scores.terms:
        added = as_cond(term)
        if (
            added is not None
            and added.term.value is zeroed.term.value
            and added.hides == zeroed.hides
        ):
            scores.terms.remove(term)
            return added.term
    return None
