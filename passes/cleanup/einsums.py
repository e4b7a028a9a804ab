"""Einsums that are products by a stack of matrices, and weighted sums: what experts are spelled in.

`bsd,edf->bsef` is one product per matrix of the stack; `bsed,bse->bsd` multiplies and sums. As
products and sums they are what other exporters write, and what recognition reads.
"""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import DimLike, known_equal, product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, gathering, linalg, reduce, reshaping
from regraft.ir.ops.einsum import ELLIPSIS, Labels, einsum, parse_equation
from regraft.ir.rewrite import LocalRule, Reject, Rewriter, RuleSet


def _terms(node: Node) -> tuple[list[tuple[Value, Labels]], Labels] | None:
    """Returns the two operands with their labels, and those of the result."""
    equation = parse_equation(node.attrs["equation"])
    pairs = [
        (value, labels)
        for value, labels in zip(node.inputs, equation.terms, strict=True)
        if value is not None and value.shape is not None
    ]
    if len(pairs) != 2 or len(node.inputs) != 2:
        return None
    every = [*equation.terms, equation.result]
    if any(ELLIPSIS in labels or len(set(labels)) < len(labels) for labels in every):
        return None
    sizes: dict[str, DimLike] = {}
    for value, labels in pairs:
        for label, size in zip(labels, value.shape or (), strict=True):
            if not known_equal(sizes.setdefault(label, size), size):
                return None  # an axis of size 1 is repeated
    return pairs, equation.result


def _stack(node: Node, rw: Rewriter) -> bool | Reject:
    """Makes a product by a constant stack [E, a, b] one of matrices, E of them."""
    found = _terms(node)
    if found is None:
        return False
    pairs, result = found
    stacks = [pair for pair in pairs if len(pair[1]) == 3 and is_constant(pair[0])]
    if len(stacks) != 1 or len(pairs[0][1]) + len(pairs[1][1]) < 5:
        return False
    stack, theirs = stacks[0]
    x, ours = pairs[0] if pairs[1] is stacks[0] else pairs[1]
    first, *rest = theirs
    summed = [label for label in rest if label in ours and label not in result]
    made = [label for label in rest if label in result and label not in ours]
    if len(summed) != 1 or len(made) != 1 or first not in result or is_constant(x):
        return False
    lead = [label for label in ours if label not in (first, *summed)]
    if set(result) != {first, *lead, *made}:
        return False
    b = rw.builder(node)
    sizes: dict[str, DimLike] = dict(zip(ours, x.shape or (), strict=True))
    sizes |= dict(zip(theirs, stack.shape or (), strict=True))
    count = sizes[first] if first in ours else 1
    number = product([sizes[label] for label in lead])
    order = [first, *lead, *summed] if first in ours else [*lead, *summed]
    rows = b.op(
        reshaping.reshape, _ordered(b, x, ours, order), shape=(count, number, sizes[summed[0]])
    )
    matrices = _ordered(b, stack, theirs, [first, *summed, *made])
    out = b.op(linalg.matmul, rows, matrices)
    now = [first, *lead, *made]
    out = b.op(reshaping.reshape, out, shape=tuple(sizes[label] for label in now))
    rw.replace(node, _ordered(b, out, now, result))
    return True


def _picked(node: Node, rw: Rewriter) -> bool | Reject:
    """Makes a product by the matrices that were picked for each row one of matrices."""
    found = _terms(node)
    if found is None:
        return False
    pairs, result = found
    (x, ours), (matrices, theirs) = sorted(pairs, key=lambda pair: len(pair[1]))
    maker = matrices.producer
    if maker is None or maker.op not in (gathering.gather, gathering.gather_nd):
        return False
    summed = [label for label in theirs if label not in result]
    made = [label for label in theirs[-2:] if label not in ours and label in result]
    lead = [label for label in theirs if label not in (*summed, *made)]
    if len(summed) != 1 or len(made) != 1 or not lead or not set(ours) <= {*lead, *summed}:
        return False
    if summed[0] not in ours or set(result) != {*lead, *made}:
        return False
    b = rw.builder(node)
    own = [label for label in lead if label in ours]
    places = [axis for axis, label in enumerate(lead) if label not in ours]
    rows = b.op(
        reshaping.unsqueeze, _ordered(b, x, ours, [*own, *summed]), axes=(*places, len(lead))
    )
    out = b.op(linalg.matmul, rows, _ordered(b, matrices, theirs, [*lead, *summed, *made]))
    out = b.op(reshaping.squeeze, out, axes=(len(lead),))
    rw.replace(node, _ordered(b, out, [*lead, *made], result))
    return True


def _weighted(node: Node, rw: Rewriter) -> bool | Reject:
    """Makes a sum over one axis, weighed by a tensor of fewer axes, a product and a sum."""
    found = _terms(node)
    if found is None:
        return False
    pairs, result = found
    (x, ours), (weights, theirs) = sorted(pairs, key=lambda pair: -len(pair[1]))
    summed = [label for label in ours if label not in result]
    if len(theirs) >= len(ours) or not set(theirs) < set(ours) or len(summed) != 1:
        return False
    kept = [label for label in ours if label in result]
    if summed[0] not in theirs or set(result) != set(kept) or is_constant(x) or len(ours) < 3:
        return False
    b = rw.builder(node)
    order = [label for label in ours if label in theirs]
    shares = _ordered(b, weights, theirs, order)
    places = tuple(axis for axis, label in enumerate(ours) if label not in theirs)
    shares = b.op(reshaping.unsqueeze, shares, axes=places)
    axis = ours.index(summed[0])
    total = b.op(reduce.reduce_sum, b.op(arithmetic.mul, x, shares), axes=(axis,), keepdims=False)
    rw.replace(node, _ordered(b, total, kept, result))
    return True


def _ordered(b: Builder, value: Value, labels: Sequence[str], wanted: Sequence[str]) -> Value:
    """Returns a value with its axes in another order."""
    if tuple(labels) == tuple(wanted):
        return value
    return b.op(reshaping.transpose, value, perm=tuple(labels.index(label) for label in wanted))


RULES: RuleSet = RuleSet(
    LocalRule("einsum-of-a-stack", (einsum,), _stack),
    LocalRule("einsum-of-picked", (einsum,), _picked),
    LocalRule("einsum-that-weighs", (einsum,), _weighted),
)
