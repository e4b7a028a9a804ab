"""Values inside a module, as ONNX Runtime computes them (`ActivationSource`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.backends.onnx.widened import has_bf16, widen
from regraft.ir.constants import weight
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]
Samples = Sequence[Mapping[str, Array]]


_FED_BYTES = 1 << 25
"""Float weights of this size are fed like inputs: as a part of the model the runtime would hold
them three times while it loads, and once more in the order that its kernels like."""

_FED = frozenset({DType.F32, DType.F16, DType.F64})


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
        fed = _fed_weights(inner)
        runner = OrtRunner(to_proto(inner, profile="ort-cpu"), num_threads=self.num_threads)
        for sample in samples:
            results = runner({**sample, **fed})
            yield {value: results[name] for name, value in outputs.items()}


def _fed_weights(module: Module) -> dict[str, Array]:
    """Makes inputs of the large float weights of a module, in place; returns their content."""
    found: dict[str, Array] = {}
    for node in list(module.graph):
        kind = node.output.type if node.op is weight else None
        if not isinstance(kind, TensorType) or kind.dtype not in _FED or node.output.is_output:
            continue
        held = module.weights[node.attrs["name"]]
        if held.nbytes < _FED_BYTES:
            continue
        if not node.output.num_uses:
            module.graph.erase(node)
            continue
        name = f"fed_weight_{len(found)}"
        value = module.graph.add_input(name, kind)
        for user, slot in list(node.output.uses):
            user.set_operand(slot, value)
        module.graph.erase(node)  # what is not read would still be written into the model
        found[name] = held.numpy()
    return found
