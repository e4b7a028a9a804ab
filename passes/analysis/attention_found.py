"""One attention that was found, and whether the operator `attention` can stand for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.types import DType
from regraft.passes.analysis.attention_layout import Layout
from regraft.passes.analysis.attention_masks import Masks
from regraft.passes.analysis.attention_scores import Term
from regraft.passes.analysis.views import Atom, Axes, View, leaves, size_of, unify, view_of


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
        factors: Tensors that the values are multiplied by, or the result where no key counts.
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
    factors: list[Term] = field(default_factory=list)
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


def misfit(a: Attention) -> str:
    """Returns why the operator cannot stand for it, or ""."""
    layout = a.layout
    if not isinstance(layout.kv_groups, int):
        return "the number of query heads per key head is known at run time only"
    if a.is_channel:
        return "it mixes channels: positions are summed over"
    known = {*layout.batch, *layout.heads, *layout.rows}
    if not all(_atoms(term) <= known for term in a.scales):
        return "scores are multiplied by a tensor that depends on the key"
    if not all(_atoms(t) <= {*layout.batch, *layout.keys} or _atoms(t) <= known for t in a.factors):
        return "weights are multiplied by a tensor that depends on both the query and the key"
    if a.q.base.dtype is None or a.q.base.dtype is not a.k.base.dtype:
        return "queries and keys have other element types"
    if a.v.base.dtype is not a.q.base.dtype:
        return "values have another element type than the queries"
    problem = _softcap_problem(a) or _sinks_problem(a)
    if problem:
        return problem
    own = {*known, *layout.keys, *layout.inner, *layout.channels}
    for view, kinds in (
        (a.q, {*layout.batch, *layout.heads, *layout.rows, *layout.inner}),
        (a.k, {*layout.batch, *layout.heads, *layout.keys, *layout.inner}),
        (a.v, {*layout.batch, *layout.heads, *layout.keys, *layout.channels}),
    ):
        if not view.atoms() <= kinds or not kinds <= own:
            return "an operand has axes that attention lacks"
    return ""


def _atoms(term: Term) -> set[Atom]:
    return {leaf for axis in term.axes for leaf in leaves(axis)}


def _sinks_problem(a: Attention) -> str:
    if a.sinks is None:
        return ""
    view = view_of(a.sinks.value)
    fits = align(view, a.sinks) and view.atoms() <= set(a.layout.heads)
    return "" if fits else "the sinks are not one number per head"


def _softcap_problem(a: Attention) -> str:
    if not a.early:
        return ""
    if a.masks.terms:
        return "terms are added before and after the soft cap"
    if len(a.early) > 1 or a.masks.conds or a.masks.soft:
        return "several masks around the soft cap"
    return ""


def align(view: View, term: Term) -> bool:
    """Identifies the axes of a mask's view with the score axes; False when they do not fit."""
    return all(
        unify(own, axis) for own, axis in zip(view.axes, term.axes, strict=True) if axis and own
    )
