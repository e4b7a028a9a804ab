"""Plans to raise attention to the operator `attention`.

A row whose keys are all hidden keeps its meaning: conditions that fill with a finite number become
added numbers, those that fill with -inf hide keys. Only where the source gives NaN for such a row
(-inf everywhere and no guard) does the operator give 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, attention, cast, logical, repeating
from regraft.ir.rewrite import Rewriter
from regraft.ir.types import DType
from regraft.passes.analysis.attention_found import Attention, align
from regraft.passes.analysis.attention_scores import Cond, Term
from regraft.passes.analysis.attention_windows import ALL
from regraft.passes.analysis.views import (
    Axes,
    Axis,
    View,
    axes_of,
    emit_view,
    leaves,
    scalar_factor,
    size_of,
    view_of,
)
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.fusion.prove import Prover
from regraft.passes.protocol import Skip

_LOWER = -1e30
"""Added to a score that a finite number replaces: nothing of the score is left in the sum.

So a row whose keys are all hidden keeps equal weights.
"""


def plan_attention(found: Iterable[Attention], plan: Plan, prover: Prover) -> None:
    """Adds every attention that the operator stands for, proved on generated inputs."""
    for each in found:
        if each.is_canonical:
            continue
        reason = each.problem or _refuted(each, prover)
        if reason:
            plan.skipped.append(Skip(str(each.output.name), f"attention: {reason}"))
            continue
        node = each.output.producer
        if node is None:
            raise AssertionError("attention ends in a node")
        plan.add(node, "raise-attention", _raised(each))


def _raised(a: Attention) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, build(a, rw.builder(node)))

    return apply


def _refuted(a: Attention, prover: Prover) -> str:
    """Returns how the raised form differs, or ""."""
    graph = a.output.owner
    if graph is None:
        raise AssertionError("the place is gone")
    scratch = Graph(graph.scope)
    made = build(a, Builder(scratch))
    reason = prover.refute(a.output, made, scratch)
    for node in reversed(scratch):
        scratch.erase(node)
    return reason


def build(a: Attention, b: Builder) -> Value:
    """Builds the operator and the data movement around it; returns what equals the weighted sum."""
    lay = a.layout.resolved()
    q = _full(b, emit_view(b, a.q, [lay.batch, lay.heads, lay.rows, lay.inner]), lay.batch)
    for term in a.scales:
        q = b.op(arithmetic.mul, q, _aligned(b, term, a))
    k = emit_view(b, a.k, [lay.batch, lay.kv_heads, lay.keys, lay.inner])
    v = emit_view(b, a.v, [lay.batch, lay.kv_heads, lay.keys, lay.channels])
    k, v = _full(b, k, lay.batch, lay.kv_heads), _full(b, v, lay.batch, lay.kv_heads)
    keys = {*lay.batch, *lay.keys}
    late = [t for t in a.factors if not {leaf for x in t.axes for leaf in leaves(x)} <= keys]
    for term in a.factors:
        if term not in late:
            v = b.op(arithmetic.mul, v, _at_keys(b, term, a))
    window = a.masks.window
    made = b.op(
        attention.attention,
        q,
        k,
        v,
        _mask(b, a),
        None,
        None if a.sinks is None else _sinks(b, a.sinks, lay.heads),
        scale=a.scale,
        kv_groups=lay.kv_groups,
        causal_offset=None if window == ALL else window.offset,
        window=(-1, 0) if window == ALL else (window.left, window.right),
        softcap=a.softcap,
        mask_before_softcap=bool(a.early),
        softmax_dtype=None if a.softmax_dtype is a.q.base.dtype else a.softmax_dtype,
    )
    for term in late:  # what one query multiplies all its weights by
        made = b.op(arithmetic.mul, made, _typed(b, _aligned(b, term, a), a))
    axes: Axes = [lay.batch, lay.heads, lay.rows, lay.channels]
    return emit_view(b, View(made, axes, axes), a.output_axes)


def _full(b: Builder, x: Value, batch: Axis, heads: Axis | None = None) -> Value:
    """Repeats an operand that all sequences of the batch share, or all heads."""
    shape = x.shape
    if shape is None:
        raise AssertionError("views have shapes")
    wanted = (size_of(batch), shape[1] if heads is None else size_of(heads), *shape[2:])
    return x if shape == wanted else b.op(repeating.expand, x, shape=wanted)


def _aligned(b: Builder, term: Term, a: Attention) -> Value:
    """Returns a term's value with the axes [B, H, S, T], 1 where it is broadcast."""
    lay = a.layout.resolved()
    view = view_of(term.value)
    if not align(view, term):
        axes = axes_of(term.value.shape or ())
        view = View(term.value, axes, axes)
        if not align(view, term):
            raise AssertionError("a term whose axes were read does not fit them")
    return emit_view(b, view, [lay.batch, lay.heads, lay.rows, lay.keys])


def _at_keys(b: Builder, term: Term, a: Attention) -> Value:
    """Returns a term that depends on the key alone as [B, 1, T, 1], in the type of the values."""
    lay = a.layout.resolved()
    view = view_of(term.value)
    if not align(view, term):
        raise AssertionError("a term whose axes were read does not fit them")
    return _typed(b, emit_view(b, view, [lay.batch, [], lay.keys, []]), a)


def _typed(b: Builder, part: Value, a: Attention) -> Value:
    """Returns a tensor in the type of the values."""
    dtype = a.v.base.dtype
    if dtype is None or part.dtype is dtype:
        return part
    return b.op(cast.cast, part, to=dtype)


def _mask(b: Builder, a: Attention) -> Value | None:
    dtype = a.q.base.dtype
    if dtype is None:
        raise AssertionError("the element type was checked")
    added: Value | None = None
    for term in (*a.early, *a.masks.terms):
        part = _added(b, term, a, dtype)
        added = part if added is None else b.op(arithmetic.add, added, part)
    fills = _by_fill(a.masks.soft)
    for fill, conds in fills.items():
        # runtimes take the lowest number for -inf; beside other masks rows compare what hides them
        number = _LOWER if added is None and len(fills) == 1 else min(fill, _LOWER)
        lower = b.constant(max(number, _lowest(dtype)), dtype)
        part = _lowered(b, conds, a, lower, b.constant(0.0, dtype))
        added = part if added is None else b.op(arithmetic.add, added, part)
    visible = _visible(b, a.masks.conds, a)
    if added is None or visible is None:
        return visible if added is None else added
    return b.op(logical.where, visible, added, b.constant(-np.inf, dtype))


def _added(b: Builder, term: Term, a: Attention, dtype: DType) -> Value:
    maker = term.value.producer
    scaled = None if maker is None or term.factor == 1.0 else scalar_factor(maker)
    source = None if scaled is None or maker is None else maker.inputs[scaled[0]]
    if scaled is not None and source is not None:  # one product, not two
        term = Term(source, term.axes, term.factor * scaled[1])
    part = _aligned(b, term, a)
    if term.factor != 1.0:
        part = b.op(arithmetic.mul, part, b.constant(term.factor, part.dtype))
    return part if part.dtype is dtype else b.op(cast.cast, part, to=dtype)


def _by_fill(conds: Iterable[Cond]) -> dict[float, list[Cond]]:
    """Returns the conditions by what they make of a hidden score."""
    found: dict[float, list[Cond]] = {}
    for cond in conds:
        found.setdefault(cond.fill, []).append(cond)
    return found


def _lowest(dtype: DType) -> float:
    return float(ml_dtypes.finfo(dtype.numpy).min)


def _lowered(b: Builder, conds: list[Cond], a: Attention, hidden: Value, shown: Value) -> Value:
    """Returns what is added where one of the conditions hides: once, also where two of them do."""
    if len(conds) == 1:
        yes, no = (hidden, shown) if conds[0].hides else (shown, hidden)
        return b.op(logical.where, _condition(b, conds[0], a), yes, no)
    return b.op(logical.where, _visible(b, conds, a), shown, hidden)


def _condition(b: Builder, cond: Cond, a: Attention) -> Value:
    part = _aligned(b, cond.term, a)
    if part.dtype is DType.BOOL:
        return part
    return b.op(logical.equal, part, b.constant(0.0, part.dtype))


def _visible(b: Builder, conds: Iterable[Cond], a: Attention) -> Value | None:
    """Returns which keys none of the conditions hides, None without conditions."""
    visible: Value | None = None
    for cond in conds:
        part = _condition(b, cond, a)
        if cond.hides:
            part = b.op(logical.logical_not, part)
        visible = part if visible is None else b.op(logical.logical_and, visible, part)
    return visible


def _sinks(b: Builder, term: Term, heads: Axis) -> Value:
    """Returns the sinks as [H]."""
    view = view_of(term.value)
    if not align(view, term):
        raise AssertionError("the sinks were checked")
    value = emit_view(b, view, [heads])
    size = size_of(heads)
    return value if value.shape == (size,) else b.op(repeating.expand, value, shape=(size,))
