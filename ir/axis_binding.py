"""Axis rules bound to nodes: which label every axis of its operands and results carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.ir.axes import Axis, AxisRule, Factor, Star, Term, parse_rule, parse_term
from regraft.ir.dims import DimLike, exactdiv, known_equal, product
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.graph import Node

_RESULT = "->"


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule bound to a node: stars expanded, sizes known.

    Attributes:
        operands: Per operand the axes as factor tuples (() for size 1), or None when pinned/absent.
        results: The same for results.
        sizes: Size of every label; a compound's unknown factor is an exact quotient.
        counts: For every attribute that states sizes: the axes it describes.
    """

    operands: tuple[tuple[Axis, ...] | None, ...]
    results: tuple[tuple[Axis, ...] | None, ...]
    sizes: dict[str, DimLike]
    counts: dict[str, tuple[Axis, ...]] = field(default_factory=dict)


def rule_of(node: Node) -> AxisRule | None:
    """Returns the axis rule that the node's operator states for this node, or None."""
    axes = node.op.axes
    if callable(axes):
        axes = axes(node)
    return parse_rule(axes) if isinstance(axes, str) else axes


def bind_rule(
    rule: AxisRule,
    shapes: Sequence[tuple[DimLike, ...] | None],
    known: dict[str, DimLike] | None = None,
    results: Sequence[tuple[DimLike, ...] | None] = (),
) -> BoundRule:
    """Binds a rule to operand shapes (None: absent or unknown operand, skipped).

    Args:
        rule: The rule.
        shapes: One per operand slot.
        known: Sizes of labels that are known otherwise.
        results: Shapes of the results where they are known; they give ranks and sizes to labels
            that stand in no operand.

    Raises:
        ValueError: When ranks do not fit or sizes contradict.
    """
    sizes: dict[str, DimLike] = dict(known or {})
    pairs = [*zip(rule.operands, shapes, strict=False), *zip(rule.results, results, strict=False)]
    stars = _star_ranks(pairs)
    pending: list[tuple[Axis, DimLike]] = []
    operands: list[tuple[Axis, ...] | None] = []
    for term, shape in zip(rule.operands, shapes, strict=False):
        if term is None or shape is None:
            operands.append(None)
            continue
        axes = _expand(term, len(shape), stars)
        if len(axes) != len(shape):
            raise ValueError(f"expected {len(axes)} axes, got {len(shape)}")
        # an axis of size 1 that may be broadcast carries no label
        kept = tuple(
            () if size == 1 and len(axis) == 1 and axis[0].maybe_one else axis
            for axis, size in zip(axes, shape, strict=True)
        )
        pending += [(axis, size) for axis, size in zip(kept, shape, strict=True) if axis]
        operands.append(kept)
    rest = _solve(pending, sizes)
    terms = tuple(None if term is None else _expand(term, None, stars) for term in rule.results)
    _solve([*rest, *_result_axes(terms, results)], sizes)
    for axes_ in terms:
        for axis in axes_ or ():
            for factor in axis:
                if factor.maybe_one:
                    sizes.setdefault(factor.name, 1)
    return BoundRule(tuple(operands), terms, sizes)


def _result_axes(
    terms: Sequence[tuple[Axis, ...] | None], shapes: Sequence[tuple[DimLike, ...] | None]
) -> list[tuple[Axis, DimLike]]:
    return [
        (axis, size)
        for axes, shape in zip(terms, shapes, strict=False)
        if axes is not None and shape is not None
        for axis, size in zip(axes, shape, strict=True)
        if axis
    ]


def _star_ranks(
    pairs: Iterable[tuple[Term | None, tuple[DimLike, ...] | None]],
) -> dict[str, int]:
    stars: dict[str, int] = {}
    for term, shape in pairs:
        for axis in term or ():
            if isinstance(axis, Star) and shape is not None and term is not None:
                rank = len(shape) - sum(not isinstance(a, Star) for a in term)
                if rank < 0:
                    raise ValueError(f"rank {len(shape)} is too small")
                stars[axis.name] = max(stars.get(axis.name, 0), rank)
    return stars


def _expand(term: Term, rank: int | None, stars: dict[str, int]) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    fixed = sum(not isinstance(axis, Star) for axis in term)
    for axis in term:
        if isinstance(axis, Star):
            total = stars.get(axis.name, 0)
            count = total if rank is None else rank - fixed
            axes.extend(
                (Factor(f"{axis.name}{i}", axis.role, maybe_one=axis.maybe_one),)
                for i in range(total - count, total)
            )
        else:
            axes.append(axis)
    return tuple(axes)


def _solve(
    pending: list[tuple[Axis, DimLike]], sizes: dict[str, DimLike]
) -> list[tuple[Axis, DimLike]]:
    """Sets the sizes that axes decide; returns the axes with two or more unknown factors."""
    while pending:
        rest: list[tuple[Axis, DimLike]] = []
        for axis, size in pending:
            unknown = [factor for factor in axis if factor.name not in sizes]
            if len(unknown) > 1:
                rest.append((axis, size))
                continue
            have = product(sizes[factor.name] for factor in axis if factor.name in sizes)
            if unknown:
                sizes[unknown[0].name] = size if have == 1 else exactdiv(size, have)
            elif isinstance(size, int) and isinstance(have, int) and size != have:
                names = " ".join(factor.name for factor in axis)
                raise ValueError(f"axis `{names}` is {have} in one operand and {size} in another")
            elif isinstance(size, int) and not known_equal(size, have) and len(axis) == 1:
                sizes[axis[0].name] = size  # a known size is the better description
        if len(rest) == len(pending):
            break
        pending = rest
    return pending


def bind_node(node: Node, rule: AxisRule, *, with_results: bool = False) -> BoundRule:
    """Binds a rule to a node's operand shapes and to the attributes that state sizes.

    Args:
        node: The node.
        rule: Its rule.
        with_results: Whether the recorded result shapes may be used: they give ranks and sizes to
            labels that stand in no operand.

    Raises:
        ValueError: When ranks do not fit or sizes contradict.
    """
    shapes = [None if value is None else value.shape for value in node.inputs]
    results = [value.shape for value in node.outputs] if with_results else []
    # a variadic operand list may be shorter or longer than the rule: pad so that the rest lines up
    shapes = [*shapes, *([None] * (len(rule.operands) - len(shapes)))][: len(rule.operands)]
    terms: list[Term | None] = list(rule.operands)
    stated = [name for name, text in node.op.counts.items() if text != _RESULT]
    for name in stated:
        value = node.attrs[name]
        terms.append(parse_term(node.op.counts[name]))
        shapes.append(value if value is None or isinstance(value, tuple) else (value,))
    bound = bind_rule(AxisRule(tuple(terms), rule.results), shapes, results=results)
    first = len(rule.operands)
    counts = {
        name: axes
        for name, axes in zip(stated, bound.operands[first:], strict=True)
        if axes is not None
    }
    for name, text in node.op.counts.items():
        if text == _RESULT and node.attrs[name] is not None and bound.results[0] is not None:
            # a target shape may have fewer axes than the result that it is broadcast to
            counts[name] = bound.results[0][len(bound.results[0]) - len(node.attrs[name]) :]
    return BoundRule(bound.operands[:first], bound.results, bound.sizes, counts)


def resized_attrs(node: Node, bound: BoundRule, sizes: Mapping[str, DimLike]) -> dict[str, Any]:
    """Returns the node's attributes with every stated size recomputed for new label sizes.

    Args:
        node: The node.
        bound: Its rule, bound.
        sizes: New sizes of all labels.
    """
    attrs = dict(node.attrs)
    for name, axes in bound.counts.items():
        new = tuple(product(sizes[factor.name] for factor in axis) for axis in axes)
        attrs[name] = new if isinstance(attrs[name], tuple) else new[0]
    return attrs


def infer_from_rule(node: Node) -> Type | tuple[Type, ...]:
    """Derives result types from the axis rule; element type of the first operand.

    Raises:
        TypeInferenceError: When the operands' shapes contradict the rule.
    """
    rule = rule_of(node)
    dtype = next((value.dtype for value in node.inputs if value is not None), None)
    missing = any(
        value is not None and value.shape is None and term is not None
        for value, term in zip(node.inputs, rule.operands if rule else (), strict=False)
    )
    if rule is None or missing:
        return tuple(TensorType(dtype, None) for _ in node.outputs)
    try:
        bound = bind_node(node, rule)
    except ValueError as error:
        raise node.error(str(error)) from error
    types = []
    for result, axes in enumerate(bound.results[: len(node.outputs)]):
        if axes is None:
            types.append(TensorType(dtype, None))
            continue
        shape = tuple(
            product(bound.sizes[f.name] for f in axis)
            if all(f.name in bound.sizes for f in axis)
            else node.fresh_dim(result, i)
            for i, axis in enumerate(axes)
        )
        types.append(TensorType(dtype, shape))
    return tuple(types)
