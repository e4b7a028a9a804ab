"""The middle of attention: what stands between the scores, the softmax and the weighted sum.

Skeleton by structure: a product of two tensors, a softmax, and a product with a third tensor. The
middle by algebra: scaling, soft cap, masks and biases in whatever order and layout an exporter wrote
them, read off while the axes of the scores are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    activation,
    arithmetic,
    cast,
    functions,
    logical,
    reduce,
    repeating,
    slicing,
    softmax,
)
from regraft.ir.opspec import Trait
from regraft.ir.types import DType
from regraft.passes.analysis.products import Product, product_of
from regraft.passes.analysis.views import (
    Atom,
    Axes,
    axes_of,
    is_float,
    is_movement,
    leaves,
    moved,
    scalar_factor,
    view_of,
)
from regraft.passes.cleanup.facts import made_by, uniform

_MAX_STEPS = 40
_HIDDEN = -1000.0
"""exp of this and less is 0 next to any visible score."""

_NEVER = -1e30
"""A bound that no visible score reaches."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A softmax in any spelling.

    Args:
        logits: What it is taken of.
        weights: Its result.
        axis: The axis, counted from the front.
        nodes: The nodes that make it.
    """

    logits: Value
    weights: Value
    axis: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A tensor that takes part in the scores.

    Args:
        value: The tensor.
        axes: The score axes that its own axes run over (empty for size 1).
        factor: What it is multiplied by.
    """

    value: Value
    axes: Axes
    factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Cond:
    """A condition that hides keys.

    Args:
        term: The condition.
        hides: The truth value that hides.
        fill: What a hidden score becomes.
    """

    term: Term
    hides: bool
    fill: float


@dataclass(slots=True, eq=False)
class Scores:
    """What becomes of the product of queries and keys until the softmax.

    Attributes:
        product: The product.
        axes: Axes of the softmax's operand.
        scale: Factor of the product within the soft cap.
        softcap: The cap, 0 without.
        early: Terms added before the cap.
        terms: Terms added after it.
        conds: Conditions that hide keys.
        scales: Tensors that the product is multiplied by.
        sinks: Further scores without a value, one position at the end of the keys.
        softmax_dtype: Element type in which the softmax runs, when it is another one.
        nodes: The nodes on the way.
        problem: Why the middle is none that attention has, or "".
    """

    product: Product
    axes: Axes
    scale: float = 1.0
    softcap: float = 0.0
    early: list[Term] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    conds: list[Cond] = field(default_factory=list)
    scales: list[Term] = field(default_factory=list)
    sinks: Term | None = None
    softmax_dtype: DType | None = None
    nodes: list[Node] = field(default_factory=list)
    problem: str = ""

    def times(self, factor: float) -> None:
        """Multiplies the scores by a number."""
        if factor <= 0:
            self.problem = "scores are multiplied by a number that is not positive"
            return
        self.scale *= factor
        if self.softcap:
            self.softcap *= factor
        self.terms = [Term(t.value, t.axes, t.factor * factor) for t in self.terms]
        self.early = [Term(t.value, t.axes, t.factor * factor) for t in self.early]
        self.conds = [Cond(c.term, c.hides, c.fill * factor) for c in self.conds]


def softmax_site(node: Node) -> Site | None:
    """Returns the softmax that a node ends, or None: an operator, or exp divided by its sum."""
    if node.op is softmax.softmax:
        x = node.inputs[0]
        if x is None or x.shape is None:
            return None
        return Site(x, node.outputs[0], node.attrs["axis"] % len(x.shape), (node,))
    if node.op is arithmetic.div:
        return _divided(node, node.inputs[0], node.inputs[1])
    if node.op is arithmetic.mul:
        for idx in (0, 1):
            inverse = made_by(node.inputs[idx], functions.reciprocal)
            if inverse is not None:
                return _divided(node, node.inputs[1 - idx], inverse.inputs[0])
    if node.op is functions.exp:
        inner = made_by(node.inputs[0], softmax.log_softmax)
        x = None if inner is None else inner.inputs[0]
        if inner is not None and x is not None and x.shape is not None:
            axis = inner.attrs["axis"] % len(x.shape)
            return Site(x, node.outputs[0], axis, (inner, node))
    return None


def _divided(node: Node, top: Value | None, bottom: Value | None) -> Site | None:
    """`exp(x) / reduce_sum(exp(x))`, with the largest score taken off or not."""
    total = None if bottom is None else bottom.producer
    while total is not None and total.op is repeating.expand and total.inputs[0] is not None:
        total = total.inputs[0].producer
    if total is None or total.op is not reduce.reduce_sum or total.inputs[0] is not top:
        return None
    power = made_by(top, functions.exp)
    axes = total.static("axes")
    if power is None or top is None or top.shape is None or not isinstance(axes, tuple):
        return None
    x = power.inputs[0]
    if len(axes) != 1 or x is None or not total.attrs["keepdims"]:
        return None
    return Site(x, node.outputs[0], axes[0] % len(top.shape), (power, total, node))


# -- from the softmax down to the product -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    node: Node
    main: int  # the operand that the scores come in by


_SINGLE = frozenset({functions.tanh, activation.clip})
_BOTH = frozenset({arithmetic.add, arithmetic.mul, arithmetic.max_})
_FIRST = frozenset({arithmetic.sub, arithmetic.div})


def _ways_down(node: Node) -> Iterator[int]:
    """Yields the operands by which scores may come into a node."""
    op = node.op
    if is_movement(node) or op in _SINGLE or op in _FIRST:
        yield 0
    elif op is cast.cast:
        if is_float(node.attrs["to"]):
            yield 0
    elif op in _BOTH:
        if len(node.inputs) == 2:
            yield 0
            yield 1
    elif op is logical.where:
        yield 1
        yield 2
    elif op is slicing.concat and len(node.inputs) == 2:
        yield 0


def find_path(site: Site, data: set[Value]) -> tuple[Product, list[_Step]] | None:
    """Returns the product that the logits come from and the steps up to them, product first.

    Of several products, one of two tensors that depend on the inputs is preferred.
    """
    for is_strict in (True, False):
        steps: list[_Step] = []
        found = _descend(site.logits, data, is_strict, steps, set())
        if found is not None:
            return found, steps[::-1]
    return None


def _descend(
    value: Value, data: set[Value], is_strict: bool, steps: list[_Step], seen: set[Value]
) -> Product | None:
    node = value.producer
    if node is None or value in seen or value not in data or len(steps) > _MAX_STEPS:
        return None
    seen.add(value)
    product = product_of(node)
    if product is not None:
        operands = [product.operand(0), product.operand(1)]
        count = sum(operand in data for operand in operands)
        fits = count == 2 or (not is_strict and count == 1 and not _has_constant(operands))
        return product if fits else None
    for idx in _ways_down(node):
        main = node.inputs[idx]
        if main is None or main.shape is None:
            continue
        steps.append(_Step(node, idx))
        found = _descend(main, data, is_strict, steps, seen)
        if found is not None:
            return found
        steps.pop()
    return None


def _has_constant(values: list[Value]) -> bool:
    """Whether one is a constant behind mere data movement: a linear layer, no attention."""
    for value in values:
        base = view_of(value, scales=True).base.producer
        if base is not None and Trait.CONSTANT in base.op.traits:
            users = value.producer
            if users is None or users.op is not repeating.expand:
                return True
    return False


# -- from the product up to the softmax -------------------------------------------------------------


def read_scores(product: Product, operand_axes: tuple[Axes, Axes], steps: list[_Step]) -> Scores:
    """Follows the scores from the product through the steps; `problem` says where it fails."""
    axes = product.result_axes(*operand_axes)
    scores = Scores(product, axes or [], nodes=[product.node])
    if axes is None:
        scores.problem = "the axes of the product do not fit"
        return scores
    for step in steps:
        scores.nodes.append(step.node)
        _apply(scores, step)
        if scores.problem:
            break
    return scores


def _apply(scores: Scores, step: _Step) -> None:
    node, op = step.node, step.node.op
    if is_movement(node):
        after = moved(node, scores.axes)
        if after is None:
            scores.problem = "a reshape of the scores mixes their axes"
        else:
            scores.axes = after
        return
    if op is cast.cast:
        main = node.inputs[0]
        dtype: DType = node.attrs["to"]
        if main is not None and main.dtype is not None and main.dtype.bits < dtype.bits:
            scores.softmax_dtype = dtype
        elif scores.softmax_dtype is not None:
            scores.softmax_dtype = None
        return
    factor = scalar_factor(node)
    if factor is not None and factor[0] == step.main:
        scores.times(factor[1])
        return
    if op is functions.tanh:
        _cap(scores)
        return
    if op is activation.clip or op is arithmetic.max_:
        _bound(scores, step)
        return
    other = _other(node, step.main)
    if op is slicing.concat:
        _sink(scores, node)
    elif other is None:
        scores.problem = f"`{op.name}` on the scores"
    elif op is logical.where:
        _hide(scores, step, other)
    elif op is arithmetic.sub and (largest := _max_of(node.inputs[1], node.inputs[0])):
        scores.nodes += largest  # a softmax does not see what all scores of a row share
    else:
        term = _term(scores, other)
        if term is None:
            scores.problem = "an operand has axes that the scores lack"
        elif op is arithmetic.add:
            scores.terms.append(term)
        elif op is arithmetic.sub:
            scores.terms.append(Term(term.value, term.axes, -1.0))
        elif op is arithmetic.mul and not (scores.terms or scores.conds or scores.softcap):
            scores.scales.append(term)
        else:
            scores.problem = f"`{op.name}` of the scores by a tensor"


def _other(node: Node, main: int) -> Value | None:
    if node.op is logical.where:
        return node.inputs[0]
    return node.inputs[1 - main] if len(node.inputs) == 2 else None


def _term(scores: Scores, value: Value) -> Term | None:
    """Lines a broadcast operand up with the axes of the scores."""
    if value.shape is None or len(value.shape) > len(scores.axes):
        return None
    own = scores.axes[len(scores.axes) - len(value.shape) :]
    axes: Axes = []
    for dim, axis in zip(value.shape, own, strict=True):
        if dim != 1 and not axis:
            return None  # it widens an axis of size 1
        axes.append([] if dim == 1 else axis)
    return Term(value, axes)


def _cap(scores: Scores) -> None:
    if scores.softcap or scores.conds:
        scores.problem = "a tanh after a mask"
        return
    scores.early, scores.terms = scores.terms, []
    scores.softcap = 1.0


def _bound(scores: Scores, step: _Step) -> None:
    """max(scores, lowest number) changes no visible score."""
    node = step.node
    if node.op is activation.clip:
        low = node.attrs["min"] if node.inputs[1] is None else uniform(node.inputs[1])
        high = node.attrs["max"] if node.inputs[2] is None else uniform(node.inputs[2])
        fits = (low is None or low <= _NEVER) and (high is None or high >= -_NEVER)
    else:
        low = uniform(node.inputs[1 - step.main])
        fits = low is not None and low <= _NEVER
    if not fits:
        scores.problem = "scores are bounded"


def _hide(scores: Scores, step: _Step, condition: Value) -> None:
    node = step.node
    fill = uniform(node.inputs[3 - step.main])
    if fill is None or fill > _HIDDEN:
        scores.problem = "`where` on the scores with another tensor"
        return
    main = node.inputs[step.main]
    term = _term(scores, condition)
    if term is None or main is None or main.shape != node.outputs[0].shape:
        scores.problem = "a condition has axes that the scores lack"
        return
    scores.conds.append(Cond(term, step.main == 2, fill))


def _max_of(value: Value | None, x: Value | None) -> list[Node]:
    """Returns the nodes that compute the largest element of x, [] when it is something else."""
    nodes = []
    node = None if value is None else value.producer
    while node is not None and node.op is repeating.expand and node.inputs[0] is not None:
        nodes.append(node)
        node = node.inputs[0].producer
    if node is None or node.op is not reduce.reduce_max or node.inputs[0] is not x:
        return []
    return [*nodes, node]


def _sink(scores: Scores, node: Node) -> None:
    extra, axis = node.inputs[1], node.attrs["axis"] % len(scores.axes)
    if extra is None or extra.shape is None or extra.shape[axis] != 1 or scores.sinks is not None:
        scores.problem = "other scores are joined to these"
        return
    axes = [
        [] if dim == 1 else own for dim, own in zip(extra.shape, scores.axes, strict=True)
    ]
    scores.sinks = Term(extra, axes)


# -- from the softmax up to the weighted sum --------------------------------------------------------


@dataclass(slots=True, eq=False)
class Sum:
    """What becomes of the weights until they meet the values.

    Attributes:
        product: The product with the values.
        idx: Which operand the weights are.
        axes: Axes of the weights there.
        nodes: The nodes on the way, the product last.
        is_guarded: Whether NaN weights (of rows without a key) become 0.
        zeroed: Conditions that set weights to 0.
        escapes: Whether weights are used elsewhere too.
    """

    product: Product
    idx: int
    axes: Axes
    nodes: list[Node]
    is_guarded: bool
    zeroed: list[Cond]
    escapes: bool = False


def find_sum(site: Site, axes: Axes, data: set[Value], has_sinks: bool) -> Sum | None:
    """Follows the weights to the product that sums over the keys, None when there is none."""
    keys = leaves(axes[site.axis])
    state = _Weights([], False, [])
    return _ascend(site.weights, axes, keys, data, state, has_sinks, 0)


@dataclass(frozen=True, slots=True)
class _Weights:
    nodes: list[Node]
    is_guarded: bool
    zeroed: list[Cond]


def _ascend(
    value: Value, axes: Axes, keys: list[Atom], data: set[Value], state: _Weights,
    has_sinks: bool, depth: int,
) -> Sum | None:  # fmt: skip
    if depth > _MAX_STEPS:
        return None
    for user in value.users:
        product = product_of(user)
        if product is not None:
            found = _weighted_sum(product, value, axes, keys, data, state)
            if found is not None:
                return found
            continue
        step = _weights_step(user, value, axes, keys, state, has_sinks)
        if step is not None:
            after, state_after = step
            out = user.outputs[0]
            found = _ascend(out, after, keys, data, state_after, has_sinks, depth + 1)
            if found is not None:
                return found
    return None


def _weighted_sum(
    product: Product, value: Value, axes: Axes, keys: list[Atom], data: set[Value], state: _Weights
) -> Sum | None:
    idx = 0 if product.node.inputs[0] is value else 1
    other = product.operand(1 - idx)
    labels = product.labels(idx)
    summed = [a for label, a in zip(labels, axes, strict=True) if label not in product.out]
    if other is value or other not in data or len(summed) != 1 or leaves(summed[0]) != keys:
        return None
    return Sum(product, idx, axes, [*state.nodes, product.node], state.is_guarded, state.zeroed)


def _weights_step(
    user: Node, value: Value, axes: Axes, keys: list[Atom], state: _Weights, has_sinks: bool
) -> tuple[Axes, _Weights] | None:
    nodes = [*state.nodes, user]
    if is_movement(user) and user.inputs[0] is value:
        after = moved(user, axes)
        return None if after is None else (after, _Weights(nodes, state.is_guarded, state.zeroed))
    if user.op is cast.cast and is_float(user.attrs["to"]):
        return axes, _Weights(nodes, state.is_guarded, state.zeroed)
    if user.op is slicing.slice_ and has_sinks and _keeps_keys(user, axes, keys):
        return axes, _Weights(nodes, state.is_guarded, state.zeroed)
    if user.op is logical.where:
        main = 1 if user.inputs[1] is value else 2
        if user.inputs[main] is not value or uniform(user.inputs[3 - main]) != 0.0:
            return None
        condition = user.inputs[0]
        test = None if condition is None else condition.producer
        if test is not None and test.op is functions.is_nan and test.inputs[0] is value and main == 2:
            return axes, _Weights([*state.nodes, test, user], True, state.zeroed)
        if condition is None or condition.shape is None or len(condition.shape) > len(axes):
            return None
        own = axes[len(axes) - len(condition.shape) :]
        term = Term(
            condition,
            [[] if d == 1 else a for d, a in zip(condition.shape, own, strict=True)],
        )
        cond = Cond(term, main == 2, -np.inf)
        return axes, _Weights(nodes, state.is_guarded, [*state.zeroed, cond])
    return None


def _keeps_keys(node: Node, axes: Axes, keys: list[Atom]) -> bool:
    """Whether a slice cuts off the one position that a sink has."""
    cut, out = node.static("axes"), node.outputs[0].shape
    if node.static("starts") != (0,) or node.static("steps") not in ((1,), None):
        return False
    if not isinstance(cut, tuple) or len(cut) != 1 or out is None:
        return False
    axis = cut[0] % len(axes)
    return leaves(axes[axis]) == keys and axes_of(out)[axis] is not None


def interior_escapes(nodes: set[Node], last: Node) -> bool:
    """Whether a node of the middle is used outside it (an output of the attention weights)."""
    return any(
        not isinstance(user, Node) or user not in nodes
        for node in nodes
        if node is not last
        for value in node.outputs
        for user, _ in value.uses
    )
