"""What a rule is: a name, the operators it starts at, and a function that tries it on a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from regraft.ir.graph import Node, Value
from regraft.ir.opspec import OpSpec

if TYPE_CHECKING:
    from regraft.ir.rewrite.engine import Rewriter
    from regraft.ir.rewrite.explain import Trace


@dataclass(frozen=True, slots=True, init=False)
class Reject:
    """Why a rule leaves a place alone; data, so that `--explain` can print it.

    Args:
        reason: One clause, such as `bias is not 1-d`.
        where: The values or nodes that the reason speaks of.
    """

    reason: str
    where: tuple[Value | Node, ...]

    def __init__(self, reason: str, *where: Value | Node) -> None:
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "where", where)


Roots = tuple[OpSpec, ...] | Callable[[OpSpec], bool]
Apply = Callable[[Node, "Rewriter"], "bool | Reject"]


class Compiled(Protocol):
    """What the engine runs: the common form of local rules and pattern rules."""

    @property
    def name(self) -> str:
        """Its name in statistics, origins and `--explain`."""

    def wants(self, op: OpSpec) -> bool:
        """Whether the rule can start at a node of this operator; asked once per operator."""

    def apply_at(self, node: Node, rw: Rewriter, trace: Trace | None) -> bool | Reject:
        """Rewrites `node` through `rw` and returns True, or says why not."""


class Observer(Protocol):
    """Sees rewrites as they happen; the match check is one."""

    def replaced(
        self, rule: str, node: Node, values: Sequence[Value], made: Sequence[Node]
    ) -> None:
        """Called while the old node and the values that replace its results both exist.

        Args:
            rule: The rule's name.
            node: The node that is about to go.
            values: What replaces its results.
            made: Nodes that the rule placed before it; for a change in place, a copy of the node
                with the change, that goes when the call ends.
        """


class CanCompile(Protocol):
    """A member of a rule set."""

    def compile(self) -> Compiled:
        """Returns the form that the engine runs."""


@dataclass(frozen=True, slots=True)
class LocalRule:
    """A rule that is a function of its root node: the fast kind.

    Args:
        name: kebab-case.
        roots: Operators it starts at, or a predicate over operators.
        apply: `apply(node, rw)` rewrites through `rw` and returns True, or returns False (the
            node is of another kind) or a `Reject` (nearly, and why not).
    """

    name: str
    roots: Roots
    apply: Apply

    def __str__(self) -> str:
        return self.name

    def compile(self) -> LocalRule:
        """Returns the rule itself."""
        return self

    def wants(self, op: OpSpec) -> bool:
        """Returns whether the rule can start at this operator."""
        return op in self.roots if isinstance(self.roots, tuple) else self.roots(op)

    def apply_at(self, node: Node, rw: Rewriter, trace: Trace | None) -> bool | Reject:
        """Applies the rule; a local rule has no partial matches to trace."""
        return self.apply(node, rw)


def local_rule(*roots: OpSpec, name: str = "") -> Callable[[Apply], LocalRule]:
    """Makes a function of (node, rw) a `LocalRule`, named after the function by default."""

    def decorate(apply: Apply) -> LocalRule:
        return LocalRule(name or apply.__name__.strip("_").replace("_", "-"), roots, apply)

    return decorate


@dataclass(frozen=True, slots=True, init=False)
class RuleSet:
    """Rules in the order in which they are tried; sets compose with `+`.

    Raises:
        ValueError: When two rules share a name.
    """

    rules: tuple[CanCompile, ...]

    def __init__(self, *rules: CanCompile) -> None:
        object.__setattr__(self, "rules", rules)

    def __add__(self, other: RuleSet) -> RuleSet:
        return RuleSet(*self.rules, *other.rules)

    def __iter__(self) -> Iterator[CanCompile]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def compile(self) -> tuple[Compiled, ...]:
        """Returns the rules in the form that the engine runs."""
        compiled = tuple(rule.compile() for rule in self.rules)
        names: set[str] = set()
        for rule in compiled:
            if rule.name in names:
                raise ValueError(f"two rules are named `{rule.name}`")
            names.add(rule.name)
        return compiled
