"""What a lint rule is: a function of the module that yields places, and what to say about them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from regraft.ir.graph import Node, Value
from regraft.ir.module import Module

MAX_PLACES = 20
"""Places that a finding names; their number is always stated."""


class Severity(enum.Enum):
    """How bad a trap is."""

    ERROR = "error"
    """The target does not load or run the model, or its outputs are wrong."""
    WARNING = "warning"
    """The model runs, slower or less exactly than it could."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What rules look at.

    Args:
        module: The module.
        target: Where it is to run.
    """

    module: Module
    target: str


@dataclass(frozen=True, slots=True)
class LintRule:
    """One trap.

    Args:
        id: `RG` and three digits; never reused.
        name: kebab-case.
        title: What is found, in one line.
        why: What goes wrong because of it.
        fix: What to do, with the command where there is one.
        severity: How bad it is.
        places: Yields where the trap is: value names, or a sentence about the whole model.
        targets: Targets it concerns; empty for all.
    """

    id: str
    name: str
    title: str
    why: str
    fix: str
    severity: Severity
    places: Callable[[Subject], Iterable[str]]
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that found something.

    Args:
        rule: The rule.
        places: The first places.
        count: Number of all places.
    """

    rule: LintRule
    places: tuple[str, ...]
    count: int


def name_of(node: Node) -> str:
    """Returns how a place is called: the operator and its first result."""
    value = node.outputs[0]
    return f"{node.op.name} `{value.name}`" if value.name else node.op.name


def value_name(value: Value) -> str:
    """Returns the name of a value, or what makes it."""
    if value.name:
        return f"`{value.name}`"
    return value.producer.op.name if value.producer else "an input"
