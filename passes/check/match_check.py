"""The match check: every rewrite of a rule, before and after, on generated inputs.

At each replacement the cut (see `regraft.passes.check.cut`) is evaluated on both sides at two
reduced bindings of its symbols. Rewrites of equal structure are evaluated once: 32 equal layers
cost one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.errors import CheckError
from regraft.ir.graph import Node, Value
from regraft.ir.rewrite.explain import label
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.cut import Cut, close, deepen, first_cut
from regraft.passes.check.cut_run import (
    MANY_ELEMENTS,
    CannotRunError,
    CutRun,
    Draw,
    draws_of,
)
from regraft.passes.protocol import Contract, Exact, Within

_USUAL = (3, 64)
"""Evaluations (both signs, positive, negative), and compared elements, that make a match right."""

_THOROUGH = (12, 256)
"""The same once values have been found at which both sides differ: that one is excused."""

_MAX_DRAWS = 24
"""Evaluations after which few elements must do: some results are scalars."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evaluation of one cut said.

    Args:
        outcome: `equal`, `differs` or `unknown`.
        reason: What differs, or why it could not be evaluated.
    """

    outcome: str
    reason: str = ""


@dataclass(slots=True)
class MatchChecker:
    """Observes a rewrite and checks every replacement.

    Attributes:
        contract: What the running pass promises.
        num_checked: Rewrites that were proved equal on the generated inputs.
        unchecked: Rewrites that could not be checked, by reason.
        num_evaluated: Cuts evaluated; the other rewrites have a structure seen before.
        limit: Elements of a cut that is evaluated at most.
    """

    contract: Contract = field(default_factory=Exact)
    num_checked: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)
    num_evaluated: int = 0
    limit: int = MANY_ELEMENTS
    _known: dict[Hashable, Verdict] = field(default_factory=dict)
    _kinds: dict[str, Hashable] = field(default_factory=dict)

    def replaced(
        self, rule: str, node: Node, values: Sequence[Value], made: Sequence[Node]
    ) -> None:
        """Checks one replacement.

        Raises:
            CheckError: When the new values differ from the old ones, naming the rule and the node.
        """
        if not isinstance(self.contract, Exact | Within):
            self.unchecked[f"the pass is {self.contract}"] += 1
            return
        cut = first_cut(node, values, made)
        if not cut.old:
            return  # nothing reads the results
        verdict = self._judge(rule, cut)
        match verdict.outcome:
            case "equal":
                self.num_checked += 1
            case "unknown":
                self.unchecked[verdict.reason] += 1
            case _:
                raise CheckError(
                    f"rule `{rule}` at {label(node)}: {verdict.reason}",
                    hint="the rule is wrong for this match; leave its pass out, or report it",
                )

    @property
    def num_unchecked(self) -> int:
        """Rewrites that could not be checked."""
        return self.unchecked.total()

    def _judge(self, rule: str, cut: Cut) -> Verdict:
        """Evaluates the cut, further and further down until both sides agree."""
        differs: Verdict | None = None
        conclusive: Verdict | None = None
        lowered = True
        while True:
            if lowered and not cut.new_sees_more:
                # against a difference for free values, a few equal numbers prove little
                verdict = self._evaluated(rule, cut, _THOROUGH if differs else _USUAL)
                if verdict.outcome == "equal":
                    return verdict
                if verdict.outcome == "unknown":
                    # a difference counts only above a frontier that both sides share
                    return conclusive or verdict
                differs = verdict
                conclusive = verdict if cut.is_closed else conclusive
            if not cut.is_closed and not cut.is_full:
                lowered = close(cut)
                continue
            if cut.new_sees_more:
                return conclusive or Verdict("unknown", "the common frontier is too far away")
            lowered = not cut.is_full and deepen(cut)
            if not lowered and not cut.is_closed:  # more nodes than a cut has room for
                return conclusive or Verdict("unknown", "the common frontier is too far away")
            if not lowered:
                return differs or Verdict("unknown", "it was not evaluated")  # nothing is below
            close(cut)

    def _evaluated(self, rule: str, cut: Cut, evidence: tuple[int, int] = _USUAL) -> Verdict:
        key = (rule, evidence, cut.key(self._kinds))
        known = self._known.get(key)
        if known is None:
            self.num_evaluated += 1
            known = self._known[key] = compare_sides(cut, self.contract, evidence, self.limit)
        return known


def compare_sides(
    cut: Cut, contract: Contract, evidence: tuple[int, int] = _USUAL, limit: int = MANY_ELEMENTS
) -> Verdict:
    """Evaluates both sides of a cut and compares them by the contract.

    Args:
        cut: The cut.
        contract: What the pass promises.
        evidence: Evaluations and compared elements that are enough.
        limit: Elements of a cut that is evaluated at most.
    """
    rtol = contract.bound if isinstance(contract, Within) else None
    try:
        run = CutRun(cut, limit)
        num_elements = 0
        for number, draw in enumerate(draws_of(run, _MAX_DRAWS), 1):
            reason = _difference(run, draw, rtol)
            if reason:
                return Verdict("differs", reason)
            num_elements += sum(np.size(value) for value in draw.expected.values())
            if number >= evidence[0] and num_elements >= evidence[1]:
                break
    except CannotRunError as error:
        return Verdict("unknown", str(error))
    return Verdict("equal")


def _difference(run: CutRun, draw: Draw, rtol: float | None) -> str:
    """Returns how the new side differs at one draw, "" when it does not."""
    try:
        new = run.new(draw)
    except CannotRunError as error:
        if error.is_unsupported:
            raise
        return f"the new values cannot be computed: {error}{_at(draw.env)}"
    for name, expected in draw.expected.items():
        new[name] = _where_defined(expected, new[name])
    for diff in compare_outputs(draw.expected, new, plain=draw.oracle, rtol=rtol):
        if not diff.ok:
            return f"{diff.reason}{_at(draw.env)}{_cosine(diff.cosine)}"
    return ""


def _where_defined(expected: Any, new: Any) -> Any:
    """Returns `new` with NaN where the old value is NaN: there the source has no result to keep.

    A row of attention scores that are all -inf is such a place.
    """
    if not isinstance(expected, np.ndarray) or not isinstance(new, np.ndarray):
        return new
    if expected.dtype.kind != "f" or expected.shape != new.shape:
        return new
    return np.where(np.isnan(expected), expected, new).astype(new.dtype)


def _at(env: Mapping[str, int]) -> str:
    return f" at {', '.join(f'{k}={v}' for k, v in env.items())}" if env else ""


def _cosine(cosine: float) -> str:
    return "" if np.isclose(cosine, 1.0) or cosine == 0.0 else f" (cosine {cosine:.3g})"


def describe(checker: MatchChecker) -> dict[str, Any]:
    """Returns counts for `stats` of a pass record."""
    return {
        "match-checked": checker.num_checked,
        "match-evaluated": checker.num_evaluated,
        "match-unchecked": checker.num_unchecked,
    }
