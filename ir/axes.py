"""Axis rules: how the axes of an operator's operands and results correspond, stated once.

The notation (einops-like), one term per operand slot, then `->`, then one term per result:

```
matmul     "*b m ~k, *b ~k n -> *b m n"
conv       "n (g ~i) *s!, (g o*) ~i *k!, (g o*) -> n (g o*) *t!"
layer_norm "*b c!, c!, c! -> *b c!"
```

- `name`   a *pass* label: kept in the result; dropping a position drops it everywhere it stands.
- `~name`  a *sum* label: contracted; dropping a position equals zeroing it. Never inferred.
           It may stand in a result as well (a recurrent state), where its positions are dropped.
- `name!`  a *fixed* label: windows, kernel taps, causal or sorted axes, non-sum reductions. It
           still ties the axes that share it, but dropping a position changes the others.
- `*name`  zero or more axes, aligned from the right across terms. Write `*name!` and `~*name`
           for fixed and summed ones.
- `(g o)`  a compound axis, outer factor first: the same positions of `o` in every block `g`;
           `(g o*)` equal counts per block, positions free.
- `name?`  an axis that may have size 1 and be broadcast; size 1 ties nothing. Labels of a star that
           stands in several terms always may.
- `1`      an axis of size 1.  `.`  an operand with no axis information: all its axes are pinned.
- `name@half`, `name@interleaved`: the axis holds pairs (rotary embedding, gated units).

A term of an absent operand is skipped. Bound to a node, stars become `name0, name1, …` and every
label gets a size. An attribute that states sizes (groups, heads, a target shape) is listed in the
spec's `counts` with a term of its own, `{"groups": "g"}`: it binds like one more operand. The term
`->` stands for the axes of the first result, `{"shape": "->"}`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from regraft.ir.dims import DimLike, exactdiv, known_equal, product
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.graph import Node


class Role(enum.Enum):
    """What happens to a label's positions."""

    PASS = "pass"
    SUM = "sum"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Factor:
    """One label inside an axis.

    Args:
        name: The label.
        role: Its role; a label has one role in the whole rule.
        free: In a compound: equal counts per outer block, positions free.
        maybe_one: The axis may have size 1 and be broadcast.
        pairs: `half`, `interleaved` or None.
    """

    name: str
    role: Role
    free: bool = False
    maybe_one: bool = False
    pairs: str | None = None


@dataclass(frozen=True, slots=True)
class Star:
    """Zero or more axes, aligned from the right with the same star in other terms."""

    name: str
    role: Role
    maybe_one: bool = True


Axis = tuple[Factor, ...]  # () is an axis of size 1
Term = tuple["Axis | Star", ...]


@dataclass(frozen=True, slots=True)
class AxisRule:
    """A parsed rule; a None term pins the operand or result."""

    operands: tuple[Term | None, ...]
    results: tuple[Term | None, ...]

    def roles(self) -> dict[str, Role]:
        """Returns the role of every label."""
        return {
            factor.name: factor.role
            for term in (*self.operands, *self.results)
            for axis in term or ()
            for factor in ((axis,) if isinstance(axis, Star) else axis)
        }

    @property
    def has_fixed(self) -> bool:
        """Whether any label is fixed."""
        return Role.FIXED in self.roles().values()


_TOKEN = re.compile(
    r"\s*(?:(?P<star>~?\*\w+!?\??)|(?P<label>~?[A-Za-z_]\w*\*?!?\??(?:@\w+)?)|(?P<sym>[().]|1))"
)
_LABEL = re.compile(r"(~?)(\*?)(\w+?)(\*?)(!?)(\??)(?:@(\w+))?$")


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> AxisRule:
    """Parses the notation of the module docstring.

    Raises:
        ValueError: When the text is no rule, or a label has two roles.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"axis rule `{text}` has no `->`")
    operands = tuple(_parse_term(part) for part in left.split(","))
    results = tuple(_parse_term(part) for part in right.split(","))
    seen: dict[str, Role] = {}
    for term in (*operands, *results):
        for axis in term or ():
            for factor in (axis,) if isinstance(axis, Star) else axis:
                if seen.setdefault(factor.name, factor.role) is not factor.role:
                    raise ValueError(f"axis rule `{text}`: label `{factor.name}` has two roles")
    return AxisRule(operands, results)


@lru_cache(maxsize=4096)
def _parse_term(text: str) -> Term | None:
    axes: list[Axis | Star] = []
    compound: list[Factor] | None = None
    text = text.strip()
    if text == ".":
        return None
    pos = 0
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        if match is None:
            raise ValueError(f"axis rule term `{text}`: unexpected `{text[pos:]}`")
        pos = match.end()
        symbol = match["sym"]
        if symbol == "(":
            compound = []
        elif symbol == ")":
            axes.append(tuple(compound or ()))
            compound = None
        elif symbol == "1":
            axes.append(())
        elif match["star"]:
            tilde, _, name, _, fixed, _, _ = _label(match["star"])
            axes.append(Star(name, _role(tilde, fixed)))
        else:
            tilde, _, name, free, fixed, maybe, pairs = _label(match["label"])
            factor = Factor(name, _role(tilde, fixed), bool(free), bool(maybe), pairs or None)
            if compound is None:
                axes.append((factor,))
            else:
                compound.append(factor)
    return tuple(axes)


def _label(token: str) -> tuple[str, ...]:
    match = _LABEL.match(token)
    if match is None:
        raise ValueError(f"axis label `{token}` is malformed")
    return match.groups(default="")


def _role(tilde: str, fixed: str) -> Role:
    if tilde and fixed:
        raise ValueError("a label cannot be both summed (`~`) and fixed (`!`)")
    return Role.SUM if tilde else Role.FIXED if fixed else Role.PASS


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
        terms.append(_parse_term(node.op.counts[name]))
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
