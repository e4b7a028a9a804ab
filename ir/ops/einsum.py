"""Einstein summation: the equation is the axis rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node
from regraft.ir.ops.linalg import first_dtype
from regraft.ir.ops.shapes import broadcast, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import TensorType, Type

ELLIPSIS = "..."
_STAR = "rest"  # no label of an equation has four letters

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """A parsed equation: labels per operand and of the result, the ellipsis as `...`."""

    terms: tuple[Labels, ...]
    result: Labels

    @property
    def summed(self) -> frozenset[str]:
        """Labels that the result lacks."""
        return frozenset(label for term in self.terms for label in term) - set(self.result)


@lru_cache(maxsize=1024)
def parse_equation(text: str) -> Equation:
    """Parses an equation; without `->` the result is the ellipsis, then the labels used once.

    Raises:
        ValueError: When the text is no equation.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = tuple(_labels(term, text) for term in left.split(","))
    if arrow:
        result = _labels(right, text)
        known = {label for term in terms for label in term}
        for label in result:
            if label not in known:
                raise ValueError(f"`{text}`: label `{label}` of the result is in no operand")
            if result.count(label) > 1:
                raise ValueError(f"`{text}`: label `{label}` stands twice in the result")
        return Equation(terms, result)
    counts: dict[str, int] = {}
    for term in terms:
        for label in term:
            counts[label] = counts.get(label, 0) + 1
    once = sorted(label for label, count in counts.items() if count == 1 and label != ELLIPSIS)
    return Equation(terms, ((ELLIPSIS,) if ELLIPSIS in counts else ()) + tuple(once))


def _labels(term: str, text: str) -> Labels:
    head, dots, tail = term.partition(ELLIPSIS)
    if not all(letter.isalpha() and letter.isascii() for letter in head + tail):
        raise ValueError(f"`{text}`: `{term}` holds more than letters and one `...`")
    return (*head, ELLIPSIS, *tail) if dots else tuple(head)


def _equation(node: Node) -> Equation:
    try:
        equation = parse_equation(node.attrs["equation"])
    except ValueError as error:
        raise node.error(f"equation {error}") from error
    if len(equation.terms) != len(node.inputs):
        raise node.error(
            f"`{node.attrs['equation']}` has {len(equation.terms)} terms "
            f"for {len(node.inputs)} operands"
        )
    return equation


def _axes(node: Node) -> str | None:
    equation = _equation(node)
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if any(shape is None for shape in shapes):
        return None
    if ELLIPSIS in equation.summed:
        return None
    sizes = _sizes(node, equation)
    summed = equation.summed

    def text(label: str, size: DimLike | None) -> str:
        if label == ELLIPSIS:
            return f"*{_STAR}"
        if size == 1 and sizes[label] != 1:
            return "1"  # numpy broadcasts an axis of size 1
        return f"~{label}" if label in summed else label

    terms = []
    for labels, shape in zip(equation.terms, shapes, strict=True):
        own = _axis_of(labels, len(shape or ()))
        terms.append(
            " ".join(text(label, None if i is None else (shape or ())[i]) for label, i in own)
        )
    result = " ".join(text(label, None) for label in equation.result)
    return f"{', '.join(terms)} -> {result}"


def _axis_of(labels: Labels, rank: int) -> list[tuple[str, int | None]]:
    """Pairs every label with its axis; the ellipsis has none."""
    dots = labels.index(ELLIPSIS) if ELLIPSIS in labels else len(labels)
    return [
        (label, i if i < dots else None if i == dots else rank - len(labels) + i)
        for i, label in enumerate(labels)
    ]


def _sizes(node: Node, equation: Equation) -> dict[str, DimLike]:
    sizes: dict[str, DimLike] = {}
    for labels, value in zip(equation.terms, node.inputs, strict=True):
        shape = None if value is None else value.shape
        if shape is None:
            continue
        named = len(labels) - (ELLIPSIS in labels)
        if len(shape) < named or (len(shape) > named and ELLIPSIS not in labels):
            raise node.error(f"term `{''.join(labels)}` does not fit rank {len(shape)}")
        for label, axis in _axis_of(labels, len(shape)):
            if axis is None:
                continue
            size, have = shape[axis], sizes.get(label, 1)
            if have == 1:
                sizes[label] = size
            elif size != 1:
                sizes[label] = same_size(node, have, size, f"the axes `{label}`")
    return sizes


def _infer(node: Node) -> Type:
    equation = _equation(node)
    dtype = first_dtype(*node.inputs)
    sizes = _sizes(node, equation)
    batch: tuple[DimLike, ...] = ()
    for labels, value in zip(equation.terms, node.inputs, strict=True):
        if ELLIPSIS in labels and ELLIPSIS in equation.result:
            shape = None if value is None else value.shape
            if shape is None:
                return TensorType(dtype, None)
            start = labels.index(ELLIPSIS)
            stop = len(shape) - (len(labels) - start - 1)
            batch = broadcast(node, batch, shape[start:stop]) or ()
    result: list[DimLike] = []
    for label in equation.result:
        if label == ELLIPSIS:
            result.extend(batch)
        else:
            found = sizes.get(label)
            result.append(node.fresh_dim(0, len(result)) if found is None else found)
    return TensorType(dtype, tuple(result))


def _eval(c: Any, *operands: Any) -> Any:
    equation = parse_equation(c.attrs["equation"])
    result = "".join(equation.result)
    left = ",".join("".join(term) for term in equation.terms)
    # a pairwise order keeps contractions of several operands from looping over all labels at once
    return np.einsum(f"{left}->{result}", *operands, optimize=len(operands) > 1)


einsum = OpSpec(
    name="einsum",
    source="ONNX Einsum-28",
    operands=(Operand("operands", variadic=True),),
    attrs=(Attr("equation", AttrKind.STR),),
    axes=_axes,
    infer=_infer,
    eval=_eval,
)

OPS: tuple[OpSpec, ...] = (einsum,)
