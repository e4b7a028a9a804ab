"""`lint`: known traps of a model for a target, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from regraft.ir.module import Module
from regraft.lint import formats, fused, numbers, quantized
from regraft.lint.rule import MAX_PLACES, Finding, LintRule, Severity, Subject

RULES: tuple[LintRule, ...] = (*formats.RULES, *numbers.RULES, *quantized.RULES, *fused.RULES)
"""All rules, assembled by explicit concatenation."""

__all__ = ["RULES", "Finding", "LintRule", "Severity", "lint", "lint_entry"]


def lint(
    module: Module, target: str, rules: Sequence[LintRule] = RULES, *, file: Path | None = None
) -> list[Finding]:
    """Returns what the rules for a target find, errors first; the module is not changed.

    Args:
        module: The module.
        target: Where it is to run.
        rules: What is looked for.
        file: The ONNX file of the module; a quantized one is loaded by ONNX Runtime, once.

    Cost: O(nodes) per rule; two rules read every float weight once.
    """
    subject = Subject(module, target, file if quantized.is_quantized(module) else None)
    found: list[Finding] = []
    for rule in rules:
        if rule.targets and target not in rule.targets:
            continue
        places = iter(rule.places(subject))
        first = tuple(islice(places, MAX_PLACES))
        if first:
            found.append(Finding(rule, first, len(first) + sum(1 for _ in places)))
    return sorted(found, key=lambda item: (item.rule.severity is not Severity.ERROR, item.rule.id))


def lint_entry(finding: Finding) -> Mapping[str, Any]:
    """Returns one finding as JSON."""
    rule = finding.rule
    return {
        "id": rule.id, "name": rule.name, "severity": rule.severity.value, "title": rule.title,
        "why": rule.why, "fix": rule.fix, "count": finding.count, "places": list(finding.places),
    }  # fmt: skip
