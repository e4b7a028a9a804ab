"""Patterns: trees over operators, made by calling `p.matmul(x, w)` on a rule's variables.

An operand that a pattern does not mention must be absent; an attribute that it does not mention is
free, and read through `m.node(…)`. Operands of commutative operators match in both orders. An
interior value (one that the rewrite makes useless) must have no use outside the match, unless the
pattern says `.shared()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.ir.ops import OPS
from regraft.ir.opspec import OpSpec


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """Binds any value; a second occurrence must be the same value.

    Args:
        name: The parameter of `pattern` that it stands for.
        optional: It may also stand for an absent operand.
        constant: It binds constants only.
    """

    name: str
    optional: bool = False
    constant: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A constant all of whose elements equal a number, up to the rounding of its element type."""

    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Anything:
    """Any value, or none."""


@dataclass(frozen=True, slots=True, eq=False)
class AnyOf:
    """The first of several patterns that matches."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """A result of an operator.

    Args:
        op: The operator.
        operands: One pattern per operand; None for an absent one.
        attrs: Attribute name -> required value, or a predicate over the value.
        result: Which result of the operator.
        label: Name under which `m.node` finds the node.
        is_shared: Whether the value may have uses outside the match.
    """

    op: OpSpec
    operands: tuple[Pattern | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    result: int = 0
    label: str = ""
    is_shared: bool = False

    def shared(self) -> Apply:
        """Returns the pattern with uses outside the match allowed."""
        return replace(self, is_shared=True)

    def named(self, label: str) -> Apply:
        """Returns the pattern with a name for `m.node(label)`."""
        return replace(self, label=label)

    def output(self, result: int) -> Apply:
        """Returns the pattern of another result of the same operator."""
        return replace(self, result=result)


Pattern = Variable | Number | Anything | AnyOf | Apply


class Patterns:
    """Makes patterns: `p.matmul(x, w)`, `p.any_of(…)`, `p.const(0.5)`, `p.op(spec, …)`."""

    def __getattr__(self, name: str) -> Callable[..., Apply]:
        spec = OPS.get(name) or OPS.get(name.rstrip("_"))
        if spec is None:
            raise AttributeError(f"no operator is named `{name}`; use `p.op(spec, …)` for your own")
        return lambda *operands, **attrs: self.op(spec, *operands, **attrs)

    def op(self, spec: OpSpec, *operands: Pattern | float | None, **attrs: Any) -> Apply:
        """Returns the pattern of an operator; numbers stand for constants of that value."""
        unknown = next((name for name in attrs if name not in spec.all_attrs), None)
        if unknown is not None:
            raise AttributeError(f"`{spec.name}` has no attribute `{unknown}`")
        if len(operands) > len(spec.operands) and not spec.is_variadic:
            raise TypeError(f"`{spec.name}` takes {len(spec.operands)} operands")
        made = tuple(Number(x) if isinstance(x, int | float) else x for x in operands)
        return Apply(spec, made, attrs)

    def any_of(self, *options: Pattern) -> AnyOf:
        """Returns a pattern that matches where one of the options does, tried in order."""
        return AnyOf(options)

    def const(self, value: float) -> Number:
        """Returns the pattern of a constant all of whose elements equal `value`."""
        return Number(value)

    def constant(self, variable: Variable) -> Variable:
        """Returns the variable restricted to constants."""
        return replace(variable, constant=True)

    def optional(self, variable: Variable) -> Variable:
        """Returns the variable allowed to stand for an absent operand (it is None then)."""
        return replace(variable, optional=True)

    @property
    def anything(self) -> Anything:
        """The pattern that any operand matches, also an absent one."""
        return Anything()
