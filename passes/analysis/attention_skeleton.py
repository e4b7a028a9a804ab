"""The skeleton of attention: a softmax in any spelling, and the product it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
from regraft.passes.analysis.products import Product, product_of
from regraft.passes.analysis.views import is_float, is_movement, view_of
from regraft.passes.cleanup.facts import made_by

_MAX_STEPS = 40

_SINGLE = frozenset({functions.tanh, activation.clip})
_BOTH = frozenset({arithmetic.add, arithmetic.mul, arithmetic.max_})
_FIRST = frozenset({arithmetic.sub, arithmetic.div})


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
                site = _divided(node, node.inputs[1 - idx], inverse.inputs[0])
                return None if site is None else replace(site, nodes=(*site.nodes, inverse))
    if node.op is functions.exp:
        inner = made_by(node.inputs[0], softmax.log_softmax)
        x = None if inner is None else inner.inputs[0]
        if inner is not None and x is not None and x.shape is not None:
            axis = inner.attrs["axis"] % len(x.shape)
            return Site(x, node.outputs[0], axis, (inner, node))
        taken = made_by(node.inputs[0], arithmetic.sub)
        return None if taken is None else _less_log_sum(taken, node)
    return None


def _less_log_sum(taken: Node, node: Node) -> Site | None:
    """`exp(x - log_sum_exp(x))`."""
    x, copies = taken.inputs[0], list[Node]()
    total = None if taken.inputs[1] is None else taken.inputs[1].producer
    while total is not None and total.op is repeating.expand and total.inputs[0] is not None:
        copies.append(total)
        total = total.inputs[0].producer
    if total is None or total.op is not reduce.reduce_log_sum_exp or total.inputs[0] is not x:
        return None
    axes = total.static("axes")
    if x is None or x.shape is None or not isinstance(axes, tuple) or len(axes) != 1:
        return None
    if not total.attrs["keepdims"] or taken.output.shape != x.shape:
        return None
    return Site(x, node.outputs[0], axes[0] % len(x.shape), (total, *copies, taken, node))


def _divided(node: Node, top: Value | None, bottom: Value | None) -> Site | None:
    """`exp(x) / reduce_sum(exp(x))`, with the largest score taken off or not."""
    copies: list[Node] = []
    total = None if bottom is None else bottom.producer
    while total is not None and total.op is repeating.expand and total.inputs[0] is not None:
        copies.append(total)
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
    return Site(x, node.outputs[0], axes[0] % len(top.shape), (power, total, *copies, node))


@dataclass(frozen=True, slots=True)
class Step:
    """A node that scores pass, and the operand that they come in by."""

    node: Node
    main: int


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


def find_path(site: Site, data: set[Value]) -> tuple[Product, list[Step]] | None:
    """Returns the product that the logits come from and the steps up to them, product first.

    Of several products, one of two tensors that depend on the inputs is preferred, then one whose
    other operand is no plain constant. Learned queries are constants; that the softmax runs over
    the other operand's positions tells them from the weights of a linear layer.
    """
    for fits in (_of_two, _of_one_and_no_constant, _of_one):
        steps: list[Step] = []
        found = _descend(site.logits, data, fits, steps, set())
        if found is not None:
            return found, steps[::-1]
    return None


def _of_two(operands: list[Value], data: set[Value]) -> bool:
    return all(operand in data for operand in operands)


def _of_one(operands: list[Value], data: set[Value]) -> bool:
    return any(operand in data for operand in operands)


def _of_one_and_no_constant(operands: list[Value], data: set[Value]) -> bool:
    return _of_one(operands, data) and not _has_constant(operands)


Fits = Callable[[list[Value], set[Value]], bool]
"""Whether the operands of a product are looked for; given the values that depend on inputs."""


def _descend(
    value: Value, data: set[Value], fits: Fits, steps: list[Step], seen: set[Value]
) -> Product | None:
    node = value.producer
    if node is None or value in seen or value not in data or len(steps) > _MAX_STEPS:
        return None
    seen.add(value)
    product = product_of(node)
    if product is not None:
        return product if fits([product.operand(0), product.operand(1)], data) else None
    for idx in _ways_down(node):
        main = node.inputs[idx]
        if main is None or main.shape is None:
            continue
        steps.append(Step(node, idx))
        found = _descend(main, data, fits, steps, seen)
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
