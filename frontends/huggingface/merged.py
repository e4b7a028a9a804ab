"""Experts that a checkpoint stores one by one, as the stacks that a model of `transformers` holds.

`transformers` merges them while it loads: matrices of all experts become one tensor, those of gate
and value next to each other. Here the stack stays in the files and is put together expert by expert
where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.core_model_loading import Concatenate, MergeModulelist

from regraft.ir.stacked import StackedWeight
from regraft.ir.weights import MappedWeight

Array = np.ndarray[Any, Any]

_NUMBER = re.compile(r"\.(\d+)\.(?!.*\.\d+\.)")


@dataclass(slots=True)
class MergedTensors:
    """Tensors of a checkpoint that become one, gathered by name in the model.

    Attributes:
        parts: By name in the model, by pattern, by expert: the name in the checkpoint.
        patterns: By name in the model, the patterns in the order in which parts lie.
        unknown: Tensors that are merged in another way.
    """

    parts: dict[str, dict[str, dict[int, str]]] = field(default_factory=dict)
    patterns: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def add(self, given: str, name: str, pattern: str, converters: list[Any]) -> None:
        """Notes one tensor.

        Args:
            given: Its name in the checkpoint.
            name: Name in the model of what it is a part of.
            pattern: The pattern that it matched.
            converters: All conversions of the model.
        """
        (converter,) = [each for each in converters if pattern in each.source_patterns][:1]
        found = _NUMBER.search(given)
        if found is None or not _is_stack(converter.operations):
            self.unknown.append(given)
            return
        self.patterns[name] = list(converter.source_patterns)
        self.parts.setdefault(name, {}).setdefault(pattern, {})[int(found[1])] = given

    def stacks(self, tensors: Mapping[str, MappedWeight]) -> dict[str, StackedWeight]:
        """Returns the stacks by name in the model; incomplete ones are `unknown` then."""
        found = {}
        for name, parts in self.parts.items():
            rows = [parts.get(pattern, {}) for pattern in self.patterns[name]]
            count = len(rows[0])
            names = [[row.get(expert, "") for row in rows] for expert in range(count)]
            given = [each for row in rows for each in row.values()]
            if any(len(row) != count or "" in column for row in rows for column in names):
                self.unknown += given
                continue
            experts = [[tensors[each] for each in column] for column in names]
            shapes = {tuple(part.shape for part in column) for column in experts}
            if len(shapes) > 1 or len({tensors[each].dtype for each in given}) > 1:
                self.unknown += given
                continue
            (sizes,) = shapes
            shape = (count, sum(size[0] for size in sizes), *sizes[0][1:])
            found[name] = StackedWeight(experts[0][0].dtype, shape, _Entry(experts), tuple(given))
        return found


@dataclass(frozen=True, slots=True)
class _Entry:
    """Reads the matrices of one expert and puts them side by side."""

    experts: list[list[MappedWeight]]

    def __call__(self, expert: int) -> Array:
        parts = [part.numpy() for part in self.experts[expert]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _is_stack(operations: list[Any]) -> bool:
    """Returns whether operations stack experts, and put several matrices of each side by side."""
    kinds = [(type(each), each.dim) for each in operations if hasattr(each, "dim")]
    stack, beside = (MergeModulelist, 0), (Concatenate, 1)
    return len(kinds) == len(operations) and kinds in ([stack], [stack, beside])
