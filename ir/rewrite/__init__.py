"""The rewrite engine: rules, patterns, the worklist that applies them, and near misses."""

from regraft.ir.rewrite.engine import Rewriter, RewriteStats, rewrite
from regraft.ir.rewrite.explain import NearMiss
from regraft.ir.rewrite.match import Match
from regraft.ir.rewrite.pattern import Pattern, Patterns
from regraft.ir.rewrite.pattern_rule import Rule
from regraft.ir.rewrite.rule import LocalRule, Observer, Reject, RuleSet, local_rule

__all__ = [
    "LocalRule",
    "Match",
    "NearMiss",
    "Observer",
    "Pattern",
    "Patterns",
    "Reject",
    "RewriteStats",
    "Rewriter",
    "Rule",
    "RuleSet",
    "local_rule",
    "rewrite",
]
