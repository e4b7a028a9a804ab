"""Values inside a module, as ONNX Runtime computes them (`ActivationSource`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module, clone_graph

Array = np.ndarray[Any, Any]
Samples = Sequence[Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class OrtActivations:
    """Gives the values inside a module.

    Args:
        num_threads: Threads within an operator.
    """

    num_threads: int = 1

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Array]]:
        """Iterates over the samples; yields the content of each of `values`.

        Raises:
            UsageError: For a value that is not in the main graph.
            UnsupportedError: When the runtime does not take the module.
        """
        for value in values:
            if value.owner is not module.graph:
                raise UsageError(
                    f"`{value.name}` is no value of the main graph", hint="values in bodies are not"
                )
        copies: dict[Value, Value] = {}
        inner = module.clone()
        inner.graph = clone_graph(module.graph, inner.graph.scope, copies)
        names = [f"activation_{idx}" for idx in range(len(values))]
        inner.graph.set_outputs(
            (name, copies[value]) for name, value in zip(names, values, strict=True)
        )
        inner.states = ()
        runner = OrtRunner(to_proto(inner, profile="ort-cpu"), num_threads=self.num_threads)
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in zip(names, values, strict=True)}
