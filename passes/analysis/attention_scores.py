"""The middle of attention: what becomes of the scores on their way to the softmax.

Scaling, soft cap, masks and biases are read off in whatever order and layout an exporter wrote
them, while the axes of the scores are followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
)
from regraft.ir.types import DType
from regraft.passes.analysis.attention_skeleton import Step
from regraft.passes.analysis.fills import filled
from regraft.passes.analysis.products import Product
from regraft.passes.analysis.views import Axes, is_movement, moved, scalar_factor

_HIDDEN = -1000.0
"""exp of this and less is 0 next to any visible score."""

_NEVER = -1e30
"""A bound that no visible score reaches."""


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
        term: The condition, or numbers of which all but 0 hide.
        hides: The truth value that hides.
        fill: What a hidden score becomes; a factor of the numbers.
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


def read_scores(product: Product, operand_axes: tuple[Axes, Axes], steps: list[Step]) -> Scores:
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


def _apply(scores: Scores, step: Step) -> None:
    """Follows the scores through one node."""
    node, op = step.node, step.node.op
    factor = scalar_factor(node)
    if is_movement(node):
        after = moved(node, scores.axes)
        if after is None:
            scores.problem = "a reshape of the scores mixes their axes"
        else:
            scores.axes = after
    elif op is cast.cast:
        _widen(scores, node)
    elif factor is not None and factor[0] == step.main:
        scores.times(factor[1])
    elif op is functions.tanh:
        _cap(scores)
    elif op is activation.clip or op is arithmetic.max_:
        _bound(scores, step)
    elif op is slicing.concat:
        _sink(scores, node)
    elif op is logical.where:
        _hide(scores, step)
    elif op is arithmetic.sub and (largest := _max_of(node.inputs[1], node.inputs[0])):
        scores.nodes += largest  # a softmax does not see what all scores of a row share
    else:
        _join(scores, step)


def _join(scores: Scores, step: Step) -> None:
    """Adds a tensor to the scores, or multiplies them by one."""
    op, other = step.node.op, _other(step.node, step.main)
    term = None if other is None else _term(scores, other)
    if term is None:
        scores.problem = f"an operand of `{op.name}` has axes that the scores lack"
    elif op is arithmetic.add:
        scores.terms.append(term)
    elif op is arithmetic.sub:
        scores.terms.append(Term(term.value, term.axes, -1.0))
    elif op is arithmetic.mul and not (scores.terms or scores.conds or scores.softcap):
        scores.scales.append(term)
    else:
        scores.problem = f"`{op.name}` of the scores by a tensor"


def _widen(scores: Scores, cast_: Node) -> None:
    main, dtype = cast_.inputs[0], cast_.attrs["to"]
    is_wider = main is not None and main.dtype is not None and main.dtype.bits < dtype.bits
    scores.softmax_dtype = dtype if is_wider else None


def _other(node: Node, main: int) -> Value | None:
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


def _bound(scores: Scores, step: Step) -> None:
    """max(scores, lowest number) changes no visible score."""
    node = step.node
    if node.op is activation.clip:
        low = node.attrs["min"] if node.inputs[1] is None else filled(node.inputs[1])
        high = node.attrs["max"] if node.inputs[2] is None else filled(node.inputs[2])
        fits = (low is None or low <= _NEVER) and (high is None or high >= -_NEVER)
    else:
        low = filled(node.inputs[1 - step.main])
        fits = low is not None and low <= _NEVER
    if not fits:
        scores.problem = "scores are bounded"


def _hide(scores: Scores, step: Step) -> None:
    node, condition = step.node, step.node.inputs[0]
    fill = filled(node.inputs[3 - step.main])
    if fill is None or fill > _HIDDEN:
        scores.problem = "`where` on the scores with another tensor"
        return
    main = node.inputs[step.main]
    term = None if condition is None else _term(scores, condition)
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
    axes = [[] if dim == 1 else own for dim, own in zip(extra.shape, scores.axes, strict=True)]
    scores.sinks = Term(extra, axes)
