"""What noise in a module's outputs changes of what is read off them.

An error of the outputs says little by itself: a class whose score leads by far stays what it is. So
noise is held against the margins that the float model has on the samples. With scores, an item's
decision changes when noise of deviation s exceeds the lead m of the largest over the next: by a
chance of about Phi(-m / s), which a few samples tell better than counting changes does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, conv, linalg, reshaping, softmax
from regraft.ir.types import DType
from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]
Kind = Literal["scores", "probabilities", "values"]

_LEAST_PROBABILITY = 1e-9
_STEEP = 6.0
"""Logits beyond it are as good as sure."""
_RIVALS = 4
"""Scores next to the largest whose noise is looked at."""
_RELATIVE_PER_SHARE = 4.0
"""Other outputs may be off by 2 % where half a percent of decisions may change."""
_SCORING = frozenset({softmax.softmax, linalg.gemm, linalg.matmul, conv.conv})
_THROUGH = frozenset({arithmetic.add, arithmetic.mul, activation.relu, reshaping.reshape})


@dataclass(frozen=True, slots=True, eq=False)
class _Output:
    """One float output of the float module, and the noise that it takes.

    Args:
        kind: What is read off it.
        references: Its content by sample.
        variance: Of the noise that uses up the whole budget.
    """

    kind: Kind
    references: tuple[Array, ...]
    variance: float


class Judge:
    """Holds a module's outputs against those of the float module, in parts of a budget.

    Args:
        module: The float module.
        source: Gives its outputs.
        samples: What it is run on.
        share: Share of the items whose decision may change.
    """

    def __init__(
        self, module: Module, source: ActivationSource, samples: Samples, share: float
    ) -> None:
        self._source, self._samples = source, samples
        self._places = [
            idx for idx, value in enumerate(module.graph.outputs) if value.dtype is DType.F32
        ]
        values = [module.graph.outputs[idx] for idx in self._places]
        seen: list[list[Array]] = [[] for _ in values]
        for item in source.activations(module, values, samples):
            for place, value in enumerate(values):
                seen[place].append(np.array(item[value]))
        self.outputs = [
            _output(value, arrays, share) for value, arrays in zip(values, seen, strict=True)
        ]

    def damage(self, module: Module, count: int | None = None) -> float:
        """Returns which part of the budget a changed module uses up: 1 is all of it.

        Args:
            module: The changed module, with the same outputs.
            count: Samples that are run, None for all.
        """
        values = [module.graph.outputs[idx] for idx in self._places]
        total = np.zeros(len(values))
        used = self._samples[:count]
        for idx, item in enumerate(self._source.activations(module, values, used)):
            for place, value in enumerate(values):
                output = self.outputs[place]
                total[place] += _noise(output.kind, output.references[idx], item[value])
        parts = [
            noise / len(used) / output.variance
            for noise, output in zip(total, self.outputs, strict=True)
        ]
        return float(max(parts, default=0.0))


def _output(value: Value, arrays: Sequence[Array], share: float) -> _Output:
    kind = _kind(value, arrays)
    if kind == "values":
        scale = float(np.mean([np.square(a, dtype=np.float64).mean() for a in arrays]))
        return _Output(kind, tuple(arrays), max(scale, 1e-30) * (share * _RELATIVE_PER_SHARE) ** 2)
    margins = [_margins(kind, array) for array in arrays]
    return _Output(kind, tuple(arrays), _deviation(margins, share) ** 2)


def _kind(value: Value, arrays: Sequence[Array]) -> Kind:
    """Returns what is read off an output: the largest of scores, a probability, or the values."""
    first = arrays[0]
    if first.ndim in (2, 3) and first.shape[-1] > 1 and _is_scores(value):
        return "scores"
    small = first.ndim <= 2 and first.shape[1:] in ((), (1,))
    if small and all(((a >= 0) & (a <= 1)).all() for a in arrays):
        return "probabilities"
    return "values"


def _is_scores(value: Value) -> bool:
    """Whether the last axis comes of a softmax, or of a product that no normalization follows."""
    maker = value.producer
    while maker is not None and maker.op in _THROUGH and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer
    return maker is not None and maker.op in _SCORING


def _logits(kind: Kind, array: Array) -> Array:
    wide: Array = np.asarray(array, np.float64)
    if kind == "probabilities":
        clipped = np.clip(wide, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        logits: Array = np.clip(np.log(clipped / (1 - clipped)), -_STEEP, _STEEP)
        return logits
    if (wide >= 0).all() and np.allclose(wide.sum(-1), 1, atol=1e-3):
        wide = np.log(np.maximum(wide, _LEAST_PROBABILITY))
    return wide


def _margins(kind: Kind, array: Array) -> Array:
    """Returns f64[items, decisions]: how far each decision is from another one."""
    logits = _logits(kind, array)
    if kind == "probabilities":
        return np.abs(logits).reshape(len(array), -1)
    top: Array = -np.partition(-logits, 1, axis=-1)[..., :2]
    leads: Array = (top[..., 0] - top[..., 1]).reshape(len(array), -1)
    return leads


def _noise(kind: Kind, before: Array, after: Array) -> float:
    """Returns the mean square of what decides: leads of scores, logits, or values."""
    change = _logits(kind, after) - _logits(kind, before)
    if kind == "scores":
        scores = _logits(kind, before)
        count = min(_RIVALS + 1, scores.shape[-1])
        order = np.argsort(-scores, axis=-1)[..., :count]
        change = np.take_along_axis(change, order, -1)
        change = change[..., 1:] - change[..., :1]
    return float(np.square(change).mean())


def _deviation(margins: Sequence[Array], share: float) -> float:
    """Returns the deviation of noise that changes the decisions of a share of the items."""
    rows = max(len(each) for each in margins)
    flat = [row for each in margins for row in each] if rows else []
    low, high = 1e-9, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        changed = np.mean([min(1.0, float(_tail(row / middle).sum())) for row in flat])
        low, high = (middle, high) if changed <= share else (low, middle)
    return low


def _tail(x: Array) -> Array:
    """Returns Phi(-x) for x >= 0, to 1e-4 (Abramowitz and Stegun, 26.2.16)."""
    t = 1 / (1 + 0.33267 * x)
    density = np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    found: Array = density * (0.4361836 * t - 0.1201676 * t**2 + 0.9372980 * t**3)
    return found
