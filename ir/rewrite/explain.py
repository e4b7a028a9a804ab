"""Near misses: how far the best partial match of a rule got at each place, and what stopped it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from regraft.ir.graph import Node, Value
from regraft.ir.rewrite.rule import Reject


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A place where a rule nearly applied.

    Args:
        rule: Name of the rule.
        root: Label of the node it started at.
        depth: How many parts of the pattern matched.
        total: Parts of the pattern.
        reason: What stopped it.
        where: Labels of the values that the reason speaks of.
    """

    rule: str
    root: str
    depth: int
    total: int
    reason: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({', '.join(self.where)})" if self.where else ""
        return (
            f"{self.rule} at {self.root}: {self.depth} of {self.total} parts match, "
            f"then {self.reason}{where}"
        )


@dataclass(slots=True)
class Trace:
    """The deepest partial match at one place, filled in by the matcher."""

    depth: int = 0
    total: int = 1
    reason: str = ""
    where: tuple[Value | Node, ...] = ()

    def note(self, depth: int, reason: str, *where: Value | Node) -> None:
        """Records a failure when no deeper one is known."""
        if depth > self.depth:
            self.depth, self.reason, self.where = depth, reason, where


@dataclass(slots=True)
class Explainer:
    """Collects the near misses of one rule; the last word on each place counts.

    A place that is matched later is no near miss, nor is one whose very root differs.
    """

    rule: str
    _misses: dict[Node, NearMiss] = field(default_factory=dict)

    def rejected(self, node: Node, reject: Reject, trace: Trace) -> None:
        """Records that a guard refused a complete match."""
        where = tuple(map(label, reject.where))
        self._misses[node] = NearMiss(
            self.rule, label(node), trace.total, trace.total, reject.reason, where
        )

    def missed(self, node: Node, trace: Trace) -> None:
        """Records a partial match."""
        if trace.depth > 0:
            self._misses[node] = NearMiss(
                self.rule, label(node), trace.depth, trace.total, trace.reason,
                tuple(map(label, trace.where)),
            )  # fmt: skip

    def applied(self, node: Node) -> None:
        """Forgets an earlier miss at a place that the rule has rewritten."""
        self._misses.pop(node, None)

    def near_misses(self) -> Sequence[NearMiss]:
        """Returns the misses at nodes that still exist, deepest first."""
        misses = [miss for node, miss in self._misses.items() if node.graph is not None]
        return sorted(misses, key=lambda miss: -miss.depth / max(miss.total, 1))


def label(item: Value | Node) -> str:
    """Returns a short name of a value or node for reports."""
    if isinstance(item, Value):
        if item.name is not None:
            return f"`{item.name}`"
        if item.producer is not None:
            return label(item.producer)
        return f"input {item.index}"
    name = item.outputs[0].name
    if name is not None:
        return f"{item.op.name} `{name}`"
    return f"{item.op.name} ({item.loc[0]})" if item.loc else item.op.name
