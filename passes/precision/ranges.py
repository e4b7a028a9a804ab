"""The range check: how large every f32 value of a module gets, by running it on samples.

A value may be stored in half precision when its largest finite magnitude stays below half of the
largest number of the type (other data gets larger than the samples), and above the smallest normal
number (a tensor whose every element is smaller loses digits, or all of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.constants import literal, weight
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.types import DType

Array = np.ndarray[Any, Any]

HEADROOM = 0.5
"""Share of the largest number of the type that a value may reach on the samples."""


@dataclass(slots=True)
class Ranges:
    """Largest finite magnitudes of f32 values.

    Attributes:
        dtype: The half-precision type.
        largest: By value; a value that no sample computed (a branch not taken) is absent.
        num_samples: Samples that were run.
    """

    dtype: DType
    largest: dict[Value, float] = field(default_factory=dict)
    num_samples: int = 0

    @property
    def limit(self) -> float:
        """The largest magnitude that is stored in the type."""
        return HEADROOM * float(ml_dtypes.finfo(self.dtype.numpy).max)

    @property
    def smallest(self) -> float:
        """The smallest normal number of the type."""
        return float(ml_dtypes.finfo(self.dtype.numpy).smallest_normal)

    def observe(self, samples: Sequence[Mapping[str, Any]], module: Module, seed: int) -> None:
        """Runs the module on samples in the numpy evaluator and notes magnitudes."""
        for sample in samples:
            evaluate(module, sample, observe=self._note, seed=seed)
            self.num_samples += 1

    def _note(self, value: Value, array: Any) -> None:
        if value.dtype is DType.F32 and isinstance(array, np.ndarray):
            known = self.largest.get(value)
            if known is None or not (value.producer and value.producer.op in (weight, literal)):
                self.largest[value] = max(known or 0.0, magnitude(array))

    def read_constants(self, module: Module) -> None:
        """Notes the magnitude of every f32 constant that no sample read, one tensor at a time."""
        by_name: dict[str, float] = {}
        for node in module.graph.walk():
            if node.op is literal and node.output.dtype is DType.F32:
                self.largest.setdefault(node.output, magnitude(node.attrs["value"]))
            elif node.op is weight and node.output.dtype is DType.F32:
                name = node.attrs["name"]
                if name not in by_name:
                    known = self.largest.get(node.output)
                    by_name[name] = (
                        magnitude(module.weights[name].numpy()) if known is None else known
                    )
                self.largest[node.output] = by_name[name]

    def problem(self, value: Value) -> str | None:
        """Returns why a value cannot be stored in the type, None when it can."""
        largest = self.largest.get(value)
        if largest is None:
            return None
        if largest > self.limit:
            limit = f"{self.dtype} is used up to {self.limit:.3g}"
            return f"{_label(value)} reaches {largest:.3g}, {limit}"
        if 0.0 < largest < self.smallest:
            return f"{_label(value)} stays below {largest:.2g}, which {self.dtype} rounds coarsely"
        return None

    def problem_inside(self, node: Node) -> str | None:
        """Returns why values inside a composite operator may leave the type, None when not."""
        if node.op is not attention:
            return None
        q, k = node.inputs[0], node.inputs[1]
        if q is None or k is None or q not in self.largest or k not in self.largest:
            return None
        size = q.shape[3] if q.shape is not None and isinstance(q.shape[3], int) else 256
        # |q . k| <= size * max|q| * max|k|
        bound = self.largest[q] * self.largest[k] * size * abs(node.attrs["scale"])
        if bound <= self.limit:
            return None
        return f"scores may reach {bound:.3g}, {self.dtype} is used up to {self.limit:.3g}"


def magnitude(array: Array) -> float:
    """Returns the largest finite magnitude of a float array, 0 when there is none."""
    if not array.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        high = max(float(array.max()), -float(array.min()))
    if np.isfinite(high):
        return high
    finite = np.abs(array[np.isfinite(array)])  # infinities and NaN are kept by every float type
    return float(finite.max()) if finite.size else 0.0


def _label(value: Value) -> str:
    if value.name is not None:
        return f"`%{value.name}`"
    return f"a result of `{value.producer.op.name}`" if value.producer else "an input"
