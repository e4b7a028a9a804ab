"""The pass `apply-rules`: rewrite rules of one's own, as a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.module import Module
from regraft.ir.rewrite import LocalRule, Rule, RuleSet, rewrite
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip


@dataclass(frozen=True, slots=True)
class ApplyRules:
    """Applies rewrite rules until none applies.

    ## What it does
    Rewrites every match of every rule, in bodies too; new nodes are typed at once.

    ## When it applies
    `regraft.apply(module, [MyRule()])` wraps a rule in this pass; in a pipeline string it does
    nothing, since text cannot hold a rule.

    ## Example
    ```
    %1 = neg(%x)
    %y = neg(%1)          // DoubleNegative makes it %x
    ```

    ## Exactness
    As exact as the rules: they are taken to be exact in real arithmetic, and `check=True` tests it.

    ## References
    `regraft.Rule`.

    Args:
        rules: The rules, tried in order at each node.
    """

    name: ClassVar[str] = "apply-rules"
    contract: ClassVar[Contract] = Exact()

    rules: tuple[Rule | LocalRule, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites to a fixpoint; the near misses of a rule to explain are its skips."""
        rules = RuleSet(*self.rules)
        explain = ctx.explain if ctx.explain in {rule.name for rule in self.rules} else None
        stats = rewrite(module, rules, explain=explain)
        ctx.explanations.extend(map(str, stats.near_misses))
        skips = tuple(Skip(miss.root, str(miss)) for miss in stats.near_misses)
        return PassResult(stats.changed, dict(stats.counts), skips)
