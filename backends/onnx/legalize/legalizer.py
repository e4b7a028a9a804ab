"""Legalization for ONNX Runtime: at every site, the form that the cost table says is fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.backends.onnx.emitter import MAX_OPSET
from regraft.backends.onnx.legalize.costs import CostTable
from regraft.backends.onnx.legalize.site import Limits, Site
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.rewrite import LocalRule, Reject, Rewriter, RuleSet


@dataclass(frozen=True, slots=True)
class OrtLegalizer:
    """Makes the rules of one legalization; implements `passes.legalize.Legalizer`.

    Args:
        table: Measured costs.
        sites: Where there is a choice.
        forced: Form by site name, whatever the table says; what `tune` measures.
        rules: Forms that the target's kernels need, where there is no choice.
    """

    table: CostTable
    sites: tuple[Site, ...]
    forced: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[LocalRule, ...] = ()

    def start(
        self,
        module: Module,
        dims: Mapping[str, int],
        opset: int | None,
        decided: Mapping[str, str],
    ) -> OrtLegalization:
        """Returns the rules for one module; see `passes.legalize.Legalizer`."""
        return OrtLegalization(self, Limits(opset or MAX_OPSET, dims), decided)


@dataclass(slots=True)
class OrtLegalization:
    """One run: which nodes were looked at, what was decided, and why."""

    legalizer: OrtLegalizer
    limits: Limits
    decided: Mapping[str, str]
    _seen: set[Node] = field(default_factory=set)
    _decisions: dict[str, str] = field(default_factory=dict)
    _kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    _first: dict[tuple[str, str], str] = field(default_factory=dict)
    _reasons: dict[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> RuleSet:
        """One rule per site, and those without a choice."""
        return RuleSet(*self.legalizer.rules, *(self._rule(s) for s in self.legalizer.sites))

    def decisions(self) -> Mapping[str, Any]:
        """Returns the form taken at every place, and the table it was taken from."""
        if not self._decisions:
            return {}
        table = self.legalizer.table
        return {
            "table": {"source": table.source, **table.machine},
            "forms": dict(sorted(self._decisions.items())),
            "reasons": dict(sorted(self._reasons.items())),
        }

    def skips(self) -> Sequence[tuple[str, str]]:
        """Returns (place, reason) of sites left in their standard form; equal reasons once."""
        found = []
        for (site, reason), count in self._kept.items():
            place = self._first[site, reason]
            more = f" and {count - 1} more" if count > 1 else ""
            found.append((f"{place}{more}", f"{site} keeps its standard form: {reason}"))
        return found

    def _rule(self, site: Site) -> LocalRule:
        def apply(node: Node, rw: Rewriter) -> bool | Reject:
            return self._apply(site, node, rw)

        return LocalRule(f"legalize-{site.name.replace('_', '-')}", site.roots, apply)

    def _apply(self, site: Site, node: Node, rw: Rewriter) -> bool | Reject:
        if node in self._seen:
            return False
        features = site.features(node, self.limits)
        if features is None:
            return False
        self._seen.add(node)
        forms = site.forms(node, self.limits)
        place = f"{site.name}:{node.output.name or node.op.name}"
        form, reason = self._choose(site, place, features, list(forms))
        build = forms[form]
        if build is None:
            self._kept[site.name, reason] += 1
            self._first.setdefault((site.name, reason), place.partition(":")[2])
            return Reject(reason)
        self._decisions[place] = form
        self._reasons.setdefault(f"{site.name}:{form}", reason)
        made = build(rw.builder(node))
        rw.replace(node, *((made,) if isinstance(made, Value) else made))
        return True

    def _choose(
        self, site: Site, place: str, features: Any, forms: Sequence[str]
    ) -> tuple[str, str]:
        forced = self.legalizer.forced.get(site.name) or self.decided.get(place)
        if forced is not None:
            if forced not in forms:
                raise UsageError(
                    f"`{place}` cannot take the form `{forced}`",
                    hint=f"possible: {', '.join(forms)}",
                )
            return forced, "decided before"
        choice = self.legalizer.table.choose(site.name, features, forms)
        return choice.form, choice.reason
