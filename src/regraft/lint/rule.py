"""What a lint rule is: a function of the module that yields places, and what to say about them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from regraft.backends.onnx.runtime import RUNTIME_ERRORS
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.lint.kernels import Kernel, run_kernels, written_kernels

MAX_PLACES = 20
"""Places that a finding names; their number is always stated."""


class Severity(enum.Enum):
    """How bad a trap is."""

    ERROR = "error"
    """The target does not load or run the model, or its outputs are wrong."""
    WARNING = "warning"
    """The model runs, slower or less exactly than it could."""


@dataclass(frozen=True)  # no slots: what is read of the file is kept
class Subject:
    """What rules look at.

    Args:
        module: The module.
        target: Where it is to run.
        file: The ONNX file that it came from, if there is one that matters: a quantized model's.
    """

    module: Module
    target: str
    file: Path | None = None

    @cached_property
    def written(self) -> Sequence[Kernel]:
        """The nodes of the file as it is; none without one."""
        return () if self.file is None else written_kernels(self.file)

    @cached_property
    def kernels(self) -> Sequence[Kernel]:
        """The nodes that ONNX Runtime makes of the file; none without one, or if it refuses it."""
        found = self._loaded
        return () if isinstance(found, str) else found

    @property
    def refusal(self) -> str:
        """What ONNX Runtime says of a file that it does not load, else empty."""
        found = self._loaded
        return found if isinstance(found, str) else ""

    @cached_property
    def _loaded(self) -> Sequence[Kernel] | str:
        if self.file is None:
            return ()
        try:
            return run_kernels(self.file)
        except RUNTIME_ERRORS as error:
            return str(error).splitlines()[0]


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
