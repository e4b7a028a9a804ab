"""Values inside a module, as ONNX Runtime computes them (`ActivationSource`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.backends.onnx.widened import has_bf16, widen
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import DType

Array = np.ndarray[Any, Any]
Samples = Sequence[Mapping[str, Array]]


def _plain(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == DType.BF16.numpy else array


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

        What is bf16 is computed and given in f32.

        Raises:
            UsageError: For a value that is not in the main graph.
            UnsupportedError: When the runtime does not take the module.
        """
        outputs = {f"activation_{idx}": value for idx, value in enumerate(values)}
        inner = with_outputs(module, outputs)
        if has_bf16(inner):
            widen(inner)
            samples = [{name: _plain(array) for name, array in each.items()} for each in samples]
        runner = OrtRunner(to_proto(inner, profile="ort-cpu"), num_threads=self.num_threads)
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in outputs.items()}
