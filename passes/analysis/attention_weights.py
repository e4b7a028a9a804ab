"""From the softmax up to the weighted sum: guards, casts and moved axes on the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, cast, functions, logical, slicing
from regraft.ir.types import DType
from regraft.passes.analysis.attention_scores import Cond, Term
from regraft.passes.analysis.attention_skeleton import Site
from regraft.passes.analysis.fills import filled
from regraft.passes.analysis.products import Product, product_of
from regraft.passes.analysis.views import Atom, Axes, axes_of, is_float, is_movement, leaves, moved
from regraft.passes.cleanup.facts import made_by

_MAX_STEPS = 40


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
        factors: Tensors that the weights are multiplied by.
    """

    product: Product
    idx: int
    axes: Axes
    nodes: list[Node]
    is_guarded: bool
    zeroed: list[Cond]
    factors: list[Term]


def find_sum(site: Site, axes: Axes, data: set[Value], has_sinks: bool) -> Sum | None:
    """Follows the weights to the product that sums over the keys, None when there is none."""
    keys = leaves(axes[site.axis])
    state = _Weights([])
    return _ascend(site.weights, axes, keys, data, state, has_sinks, 0)


@dataclass(frozen=True, slots=True)
class _Weights:
    """What was seen on the way up."""

    nodes: list[Node]
    is_guarded: bool = False
    zeroed: tuple[Cond, ...] = ()
    factors: tuple[Term, ...] = ()


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
    summed = [
        axis
        for label, axis in zip(labels, axes, strict=True)
        if label is not None and label not in product.out
    ]
    if other is value or other not in data or len(summed) != 1 or leaves(summed[0]) != keys:
        return None
    return Sum(
        product, idx, axes, [*state.nodes, product.node], state.is_guarded,
        list(state.zeroed), list(state.factors),
    )  # fmt: skip


def _weights_step(
    user: Node, value: Value, axes: Axes, keys: list[Atom], state: _Weights, has_sinks: bool
) -> tuple[Axes, _Weights] | None:
    after = replace(state, nodes=[*state.nodes, user])
    if is_movement(user) and user.inputs[0] is value:
        axes_after = moved(user, axes)
        return None if axes_after is None else (axes_after, after)
    if user.op is cast.cast and is_float(user.attrs["to"]):
        return axes, after
    if user.op is slicing.slice_ and has_sinks and _keeps_keys(user, axes, keys):
        return axes, after
    if user.op is arithmetic.mul and user.output.shape == value.shape:
        return _multiplied(user, value, axes, after)
    if user.op is logical.where:
        return _zeroed(user, value, axes, after)
    return None


def _multiplied(
    user: Node, value: Value, axes: Axes, after: _Weights
) -> tuple[Axes, _Weights] | None:
    """Weights times a condition as a number, or times another tensor."""
    other = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
    if other is None or other is value:
        return None
    made = made_by(other, cast.cast)
    condition = None if made is None else made.inputs[0]
    if condition is not None and condition.dtype is DType.BOOL:
        term = _lined_up(condition, axes)
        if term is None:
            return None
        return axes, replace(after, zeroed=(*after.zeroed, Cond(term, False, -np.inf)))
    term = _lined_up(other, axes)
    return None if term is None else (axes, replace(after, factors=(*after.factors, term)))


def _zeroed(user: Node, value: Value, axes: Axes, after: _Weights) -> tuple[Axes, _Weights] | None:
    """Weights that a condition sets to 0."""
    main = 1 if user.inputs[1] is value else 2
    if user.inputs[main] is not value or filled(user.inputs[3 - main]) != 0.0:
        return None
    condition = user.inputs[0]
    test = made_by(condition, functions.is_nan)
    if test is not None and test.inputs[0] is value and main == 2:
        return axes, replace(after, nodes=[*after.nodes[:-1], test, user], is_guarded=True)
    term = None if condition is None else _lined_up(condition, axes)
    if term is None:
        return None
    return axes, replace(after, zeroed=(*after.zeroed, Cond(term, main == 2, -np.inf)))


def _lined_up(value: Value, axes: Axes) -> Term | None:
    """Returns a tensor that broadcasts to the weights, with the axes that it runs over."""
    if value.shape is None or len(value.shape) > len(axes):
        return None
    own = axes[len(axes) - len(value.shape) :]
    return Term(value, [[] if d == 1 else a for d, a in zip(value.shape, own, strict=True)])


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
