"""Which value of the module before pruning a value corresponds to, and what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module, clone_graph
from regraft.passes.analysis.coupling.groups import Coupling, Group, touched
from regraft.passes.analysis.coupling.positions import kept_positions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Counterpart:
    """A copy of the module before its axes were cut.

    Args:
        module: The copy.
        values: From values of the module that is cut to those of the copy.
        coupling: Of the module as it was.
        choice: Kept positions of groups.
    """

    module: Module
    values: Mapping[Value, Value]
    coupling: Coupling
    choice: Mapping[Group, Array]

    @staticmethod
    def before(coupling: Coupling, choice: Mapping[Group, Array]) -> Counterpart:
        """Copies the module of a coupling, which is going to be cut; weights are shared."""
        module, copies = coupling.module, dict[Value, Value]()
        made = module.clone()
        made.graph = clone_graph(module.graph, made.graph.scope, copies)
        return Counterpart(made, copies, coupling, choice)

    def kept(self, value: Value, array: Array) -> Array:
        """Returns what is left of the content that a value had before."""
        kept = {
            group.space: rows for group, rows in self.choice.items() if rows.shape[-1] < group.size
        }
        sizes = {space: rows.shape[-1] for space, rows in kept.items()}
        for axis, space in enumerate(self.coupling.axes(value)):
            if touched(space, sizes):
                array = np.take(array, kept_positions(space, kept), axis)
        return array
