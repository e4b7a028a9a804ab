"""What a rewrite does to the outputs of a module, on samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops.activation import sigmoid
from regraft.ir.ops.softmax import log_softmax, softmax
from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]

_WORST = 100.0


class OutputError:
    """The error of a copy's outputs, relative to their energy: mean over float outputs.

    Those of a final softmax or sigmoid count before it.

    Args:
        module: The module before.
        source: Runs modules.
        samples: What they run on.
        who: What asks, for errors.
    """

    def __init__(
        self, module: Module, source: ActivationSource, samples: Samples, who: str
    ) -> None:
        self.source = source
        self.samples = samples
        self.who = who
        self.dense = self._outputs(module)

    def error(self, copy: Module) -> float:
        """Returns the error of another module with the same outputs."""
        errors = [
            float(np.square(a - b).sum() / max(float(np.square(a).sum()), 1e-30))
            for a, b in zip(self.dense, self._outputs(copy), strict=True)
        ]
        # an output that blew up, or is no number, is as bad as any other that did
        return float(np.mean(np.minimum(np.nan_to_num(errors, nan=_WORST), _WORST)))

    def _outputs(self, module: Module) -> list[Array]:
        """Returns every float output of every sample."""
        values = _float_outputs(module, self.who)
        return [
            found[value].astype(np.float64)
            for found in self.source.activations(module, values, self.samples)
            for value in values
        ]


class RewriteLoss:
    """The error of the outputs when parts of a module are rewritten (a solver's `LossSource`).

    Args:
        outputs: Of the module before.
        rewritten: Returns a copy in which parts keep the given levels, by name.
        what: What else losses depend on, as text: the graph and the method.
    """

    def __init__(
        self,
        outputs: OutputError,
        rewritten: Callable[[Mapping[str, float]], Module],
        what: str,
    ) -> None:
        self.outputs = outputs
        self.rewritten = rewritten
        digest = hashlib.sha256(what.encode())
        for array in outputs.dense:
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    def loss(self, levels: Mapping[str, float]) -> float:
        """Returns the error when parts keep the given levels, and all others everything."""
        return self.outputs.error(self.rewritten(levels))


_SATURATED = (softmax, log_softmax, sigmoid)


def _float_outputs(module: Module, who: str) -> list[Value]:
    """Returns the float outputs, those of a final softmax or sigmoid before it.

    Behind it, certain answers do not change until they are wrong.

    Raises:
        UsageError: When there is none.
    """
    values = [
        value
        for value in dict.fromkeys(map(_before_saturation, module.graph.outputs))
        if value.dtype is not None and value.dtype.is_float
    ]
    if not values:
        raise UsageError(
            f"{who} compares outputs, and none is a float",
            hint="choose an allocation that measures none",
        )
    return values


def _before_saturation(value: Value) -> Value:
    node = value.producer
    while node is not None and node.op in _SATURATED and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer
    return value
