"""Constructors of element-wise operator specs: one, two operands, or a truth value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.ir.ops.shapes import infer_broadcast, infer_predicate, infer_same
from regraft.ir.opspec import Attr, AttrKind, ContentOf, Operand, OpSpec, Trait

_POINTWISE = Trait.PURE | Trait.ELEMENTWISE


def unary(
    name: str,
    source: str,
    fn: Callable[..., Any],
    *,
    traits: Trait = Trait.NONE,
    content: ContentOf | None = None,
    **attrs: float,
) -> OpSpec:
    """Returns the spec of an operator on one tensor that keeps its type.

    Args:
        name: IR name.
        source: Where the semantics are defined.
        fn: Numpy meaning, called as `fn(x, **attrs)`.
        traits: Traits besides PURE and ELEMENTWISE.
        content: Symbolic content of a small integer result.
        attrs: Float attributes and their defaults.
    """
    names = tuple(attrs)

    def evaluate(c: Any, x: Any) -> Any:
        return fn(x, **{key: c.attrs[key] for key in names}) if names else fn(x)

    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("x"),),
        attrs=tuple(Attr(key, AttrKind.FLOAT, value) for key, value in attrs.items()),
        traits=_POINTWISE | traits,
        axes="*b -> *b",
        infer=infer_same,
        content=content,
        eval=evaluate,
    )


def binary(
    name: str,
    source: str,
    fn: Callable[..., Any],
    *,
    traits: Trait = Trait.NONE,
    content: ContentOf | None = None,
) -> OpSpec:
    """Returns the spec of an operator on two tensors of one element type that broadcast."""
    return OpSpec(
        name=name,
        source=source,
        operands=(Operand("a"), Operand("b")),
        traits=_POINTWISE | traits,
        axes="*b, *b -> *b",
        infer=infer_broadcast,
        content=content,
        eval=lambda c, a, b: fn(a, b),
    )


def predicate(
    name: str,
    source: str,
    fn: Callable[..., Any],
    *,
    num_operands: int = 2,
    traits: Trait = Trait.NONE,
    content: ContentOf | None = None,
) -> OpSpec:
    """Returns the spec of an operator whose result is a truth value per (broadcast) position."""
    return OpSpec(
        name=name,
        source=source,
        operands=tuple(Operand(operand) for operand in ("a", "b")[:num_operands]),
        traits=_POINTWISE | traits,
        axes=f"{', '.join(['*b'] * num_operands)} -> *b",
        infer=infer_predicate,
        content=content,
        # strings compare as objects and give an object array
        eval=lambda c, *operands: fn(*operands).astype(bool),
    )
