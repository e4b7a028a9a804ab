"""Values of a module on samples, computed on from those that are known already.

A walk through a graph that asks for one value after another would run everything before it again
and again; here every value is computed once, and kept while a later node may read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import is_constant
from regraft.ir.extract import extract, nodes_between
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]


class Frontier:
    """Values of the main graph, sample by sample.

    Args:
        module: What runs; parts of it that were run may not change any more.
        source: Runs parts of it.
        samples: Inputs by name.
    """

    def __init__(self, module: Module, source: ActivationSource, samples: Samples) -> None:
        self.module = module
        self.source = source
        self.samples = samples
        self._known: dict[Value, list[Array]] = {}

    def values(self, wanted: Sequence[Value]) -> list[list[Array]]:
        """Returns the content of every value, one list over the samples each."""
        graph = self.module.graph
        missing = [v for v in dict.fromkeys(wanted) if v not in self._known]
        inputs = [v for v in missing if v in graph.inputs]
        for value in inputs:
            self._known[value] = [np.asarray(sample[str(value.name)]) for sample in self.samples]
        missing = [v for v in missing if v not in self._known]
        if missing:
            self._run(missing)
        return [self._known[value] for value in wanted]

    def forget(self, before: Node) -> None:
        """Drops values that only nodes before `before` read."""
        self._known = {
            value: arrays
            for value, arrays in self._known.items()
            if value.is_output or any(user.order >= before.order for user in value.users)
        }

    def keep(self, values: Collection[Value]) -> None:
        """Drops all values but these."""
        self._known = {value: self._known[value] for value in values if value in self._known}

    def _run(self, missing: Sequence[Value]) -> None:
        _, met = nodes_between(frozenset(self._known), missing)
        known = {
            f"known_{idx}": value
            for idx, value in enumerate(self._known)
            if value in met and not is_constant(value)
        }
        names = {f"wanted_{idx}": value for idx, value in enumerate(missing)}
        part = extract(self.module, known, names)
        taken = {str(value.name) for value in part.graph.inputs}
        feeds: list[Mapping[str, Array]] = []
        for idx, sample in enumerate(self.samples):
            feed = {name: array for name, array in sample.items() if name in taken}
            feeds.append(feed | {name: self._known[value][idx] for name, value in known.items()})
        found: dict[Value, list[Array]] = {value: [] for value in missing}
        for results in self.source.activations(part, part.graph.outputs, feeds):
            for value, output in zip(missing, part.graph.outputs, strict=True):
                found[value].append(results[output])
        self._known |= found
