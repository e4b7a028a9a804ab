"""Products of two tensors, whatever their operator: which axes are paired, kept and summed over."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.graph import Node, Value
from regraft.ir.ops import einsum, linalg
from regraft.ir.ops.einsum import ELLIPSIS, parse_equation
from regraft.passes.analysis.views import Axes, Axis, unify

Labels = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """`out = sum over the labels that out lacks of a * b`.

    Attributes:
        node: The operator.
        a: Label of every axis of the first operand; None for a broadcast axis of size 1.
        b: The same of the second.
        out: Label of every axis of the result.
    """

    node: Node
    a: Labels
    b: Labels
    out: Labels

    def operand(self, idx: int) -> Value:
        """Returns an operand."""
        value = self.node.inputs[idx]
        if value is None:
            raise AssertionError("a product has two operands")
        return value

    def labels(self, idx: int) -> Labels:
        """Returns the labels of an operand's axes."""
        return self.b if idx else self.a

    def result_axes(self, a: Axes, b: Axes) -> Axes | None:
        """Pairs the operands' axes and returns those of the result, None where they do not fit."""
        known: dict[str, Axis] = {}
        for labels, axes in ((self.a, a), (self.b, b)):
            for label, axis in zip(labels, axes, strict=True):
                if label is None:
                    continue
                seen = known.get(label)
                if not seen:
                    known[label] = axis
                elif axis and not unify(seen, axis):
                    return None
        # an axis of size 1 in both operands has no atoms
        return [[] if label is None else known.get(label, []) for label in self.out]


def product_of(node: Node) -> Product | None:
    """Returns how a node multiplies two tensors, or None when it does something else."""
    if node.op is linalg.matmul:
        return _matmul(node)
    if node.op is einsum.einsum and len(node.inputs) == 2:
        return _einsum(node)
    return None


def _matmul(node: Node) -> Product | None:
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None or a.shape is None or b.shape is None:
        return None
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a < 2 or rank_b < 2:
        return None
    batch = [str(i) for i in range(max(rank_a, rank_b) - 2)]
    lead_a = _paired(batch, a.shape[:-2])
    lead_b = _paired(batch, b.shape[:-2])
    return Product(node, (*lead_a, "m", "k"), (*lead_b, "k", "n"), (*batch, "m", "n"))


def _paired(batch: list[str], shape: tuple[object, ...]) -> Labels:
    own = batch[len(batch) - len(shape) :]
    return tuple(None if size == 1 else label for label, size in zip(own, shape, strict=True))


def _einsum(node: Node) -> Product | None:
    equation = parse_equation(node.attrs["equation"])
    values = node.inputs[0], node.inputs[1]
    terms: list[Labels] = []
    for term, value in zip(equation.terms, values, strict=True):
        if value is None or value.rank is None:
            return None
        labels = _spelled_out(term, value.rank)
        if len(set(labels)) != len(labels):
            return None  # a diagonal
        terms.append(labels)
    out = _spelled_out(equation.result, node.outputs[0].rank or 0)
    summed = {*terms[0], *terms[1]} - set(out)
    if not summed <= {*terms[0]} & {*terms[1]}:
        return None  # a plain sum over one operand
    return Product(node, terms[0], terms[1], out)


def _spelled_out(term: tuple[str, ...], rank: int) -> Labels:
    """Replaces an ellipsis by one label per axis, aligned at the right."""
    if ELLIPSIS not in term:
        return term
    place = term.index(ELLIPSIS)
    count = rank - len(term) + 1
    return (*term[:place], *(f"{ELLIPSIS}{i}" for i in range(count, 0, -1)), *term[place + 1 :])
