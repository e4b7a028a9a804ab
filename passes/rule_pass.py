"""A pass made of rules: runs the rules of a plugin, or a rule given where a pass is expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from regraft.ir.module import Module
from regraft.ir.rewrite import RuleSet, rewrite
from regraft.passes.protocol import Context, Contract, Exact, Pass, PassResult


@runtime_checkable
class HasRules(Protocol):
    """A pass whose rewrites are rules, so that `--explain` can name one."""

    def rules(self) -> RuleSet:
        """Returns the rules in the order in which they are tried."""


def pass_of_rules(pass_name: str, rules: RuleSet) -> type[Pass]:
    """Returns a pass that applies rules until none applies; its contract is exact.

    Args:
        pass_name: Name of the pass.
        rules: What it applies.

    Raises:
        ValueError: When two rules share a name.
    """
    names = [rule.name for rule in rules.compile()]

    @dataclass(frozen=True, slots=True)
    class RulePass:
        name: ClassVar[str] = pass_name
        contract: ClassVar[Contract] = Exact()

        def rules(self) -> RuleSet:
            """Returns the rules."""
            return rules

        def run(self, module: Module, ctx: Context) -> PassResult:
            """Applies the rules to a fixpoint."""
            explain = ctx.explain if ctx.explain in names else None
            stats = rewrite(module, rules, explain=explain, observer=ctx.observer)
            ctx.explanations.extend(map(str, stats.near_misses))
            return PassResult(stats.changed, dict(stats.counts))

    RulePass.__doc__ = f"Applies {', '.join(f'`{name}`' for name in names)} until none applies."
    return RulePass
