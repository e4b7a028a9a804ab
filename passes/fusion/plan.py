"""What `fuse` is going to raise: recognized places by the node that computes their result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from regraft.ir.graph import Node
from regraft.ir.rewrite import LocalRule, Reject, Rewriter, RuleSet
from regraft.passes.protocol import Skip

Raise = Callable[[Node, Rewriter], None]
"""Replaces the results of a node through the rewriter."""


@dataclass(slots=True)
class Plan:
    """Places to raise and places left alone.

    Attributes:
        places: The last node of each place, with the name of its rule and what raises it.
        skipped: Places that cannot be raised, with the reason.
    """

    places: dict[Node, tuple[str, Raise]] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)

    def add(self, node: Node, rule: str, apply: Raise) -> None:
        """Plans to replace the results of `node`."""
        self.places[node] = rule, apply

    def in_order(self) -> list[Node]:
        """Returns the planned nodes, users first: what a place reads is then still in the graph."""
        return sorted(self.places, key=lambda node: -node.order)

    def rules(self) -> RuleSet:
        """Returns one rule per kind of place; each applies at the planned nodes alone."""
        names = dict.fromkeys(rule for rule, _ in self.places.values())
        return RuleSet(*(LocalRule(name, self._wants, self._at(name)) for name in names))

    def _wants(self, op: object) -> bool:
        return True

    def _at(self, name: str) -> Callable[[Node, Rewriter], bool | Reject]:
        def apply(node: Node, rw: Rewriter) -> bool:
            place = self.places.get(node)
            if place is None or place[0] != name:
                return False
            place[1](node, rw)
            return True

        return apply
