"""Values inside a module, as ONNX Runtime computes them (`ActivationSource`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Value
from regraft.ir.module import Module

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
        outputs = {f"activation_{idx}": value for idx, value in enumerate(values)}
        inner = with_outputs(module, outputs)
        runner = OrtRunner(to_proto(inner, profile="ort-cpu"), num_threads=self.num_threads)
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in outputs.items()}
