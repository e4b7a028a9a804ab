"""The pass `canonicalize`: one form for everything that exporters spell in many ways."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.collector import collector_paused
from regraft.ir.errors import RegraftError
from regraft.ir.module import Module
from regraft.ir.rewrite import RuleSet, rewrite
from regraft.passes.cleanup import (
    algebra,
    branches,
    einsums,
    repeats,
    reshapes,
    slices,
    static_params,
    transposes,
)
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.cleanup.folding import FoldOptions, folding_rules
from regraft.passes.cleanup.subexpressions import merge_subexpressions
from regraft.passes.protocol import Context, Contract, Exact, PassResult

_MAX_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Canonicalize:
    """Folds constants, merges equal computations, and removes what does nothing.

    ## What it does
    Constant folding, common subexpressions, dead code, arithmetic identities, sizes that are known
    before run time, chains of reshapes, transposes, casts, slices and concats, transposes sunk to
    where they cancel, branches whose condition is constant, einsums that are products by a stack
    of matrices or weighted sums. Running it twice changes nothing more.

    ## When it applies
    To every module. Parameters are folded only through data movement, casts and arithmetic recorded
    as derived weights, or where another operator of parameters alone computes a tensor of at most
    the same bytes; two parameters are never merged, nor is one renamed. In a module captured from
    PyTorch, until it is legalized, only rearrangements of whole parameters are folded: what is
    computed from a parameter trains with it.

    ## Example
    ```
    %1 = transpose(%x) {perm = [1, 0, 2]}
    %2 = transpose(%1) {perm = [1, 0, 2]}
    %3 = add(%2, %zero)                     // becomes %x
    ```

    ## Exactness
    Exact in real arithmetic; data movement and integers are bit-equal. Folded constants are
    computed in f32 and rounded as the operator would round them.

    ## References
    Muchnick, Advanced Compiler Design and Implementation, chapters 12 to 14.

    Args:
        max_fold_bytes: A folded constant takes at most this, or as much as its operands.
        fold_params: Fold operators of parameters and buffers too.
    """

    name: ClassVar[str] = "canonicalize"
    contract: ClassVar[Contract] = Exact()

    max_fold_bytes: int = 1 << 20
    fold_params: bool = True

    def rules(self) -> RuleSet:
        """Returns the rules, the cheap and most frequent ones first."""
        return (
            reshapes.RULES
            + static_params.RULES
            + slices.RULES
            + repeats.RULES
            + folding_rules(FoldOptions(self.max_fold_bytes, self.fold_params))
            + transposes.RULES
            + algebra.RULES
            + einsums.RULES
            + branches.RULES
        )

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites to a fixpoint of rules, merging and dead-code removal."""
        rules = self.rules()
        explain = ctx.explain if ctx.explain in {rule.name for rule in rules.compile()} else None
        counts: Counter[str] = Counter()
        with collector_paused():
            for _ in range(_MAX_ROUNDS):
                if not self._round(module, rules, explain, counts, ctx):
                    break
            else:
                raise RegraftError(
                    f"canonicalize did not come to rest in {_MAX_ROUNDS} rounds; it did {counts}",
                    hint="two rules undo each other; please report the model",
                )
        stats = {name: count for name, count in sorted(counts.items()) if count}
        return PassResult(bool(stats), stats)

    def _round(
        self,
        module: Module,
        rules: RuleSet,
        explain: str | None,
        counts: Counter[str],
        ctx: Context,
    ) -> bool:
        """Looks at everything once; the last round is the one that changes nothing."""
        stats = rewrite(module, rules, explain=explain, observer=ctx.observer)
        counts.update(stats.counts)
        merged = merge_subexpressions(module.graph)
        counts["merged"] += len(merged)
        dropped = drop_dead_code(module)
        counts["dropped"] += stats.num_dropped + dropped
        if explain is not None:  # what stopped the rule in the end, not on the way
            ctx.explanations[:] = map(str, stats.near_misses)
        return stats.changed or bool(merged) or bool(dropped)
