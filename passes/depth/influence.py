"""How much layers matter: what they turn, and what the outputs lose without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.layers import Layer
from regraft.passes.analysis.position_mask import mask_of
from regraft.passes.calibration.output_error import OutputError, RewriteLoss
from regraft.passes.depth.stack import num_parameters, without
from regraft.passes.protocol import ActivationSource, Samples
from regraft.passes.solver import Problem, SeparateCosts, Solution, Unit, solve

Array = np.ndarray[Any, Any]


def influences(
    module: Module,
    layers: Mapping[int, Layer],
    mask: str,
    source: ActivationSource,
    samples: Samples,
) -> dict[int, float]:
    """Returns how much each layer turns the stream, by its number: the mean of 1 - cos.

    Source: Men et al., ShortGPT, 2024, eq. 1 (block influence).

    Raises:
        UsageError: When no position of the samples counts.
    """
    values = dict.fromkeys(v for each in layers.values() for v in (each.input, each.output))
    masks = {n: mask_of(module, layer.output, mask) for n, layer in layers.items()}
    turns: dict[int, list[Array]] = {number: [] for number in layers}
    given = source.activations(module, list(values), samples)
    for sample, states in zip(samples, given, strict=True):
        for number, layer in layers.items():
            turned = turned_by(states[layer.input], states[layer.output])
            own = masks[number]
            counts = slice(None) if own is None else np.asarray(sample[own]) != 0
            turns[number].append(turned[counts].ravel())
    if not all(sum(map(len, each)) for each in turns.values()):
        raise UsageError(
            f"pass `drop-layers`, option `mask`: no position of the samples counts in `{mask}`"
        )
    return {number: float(np.concatenate(each).mean()) for number, each in turns.items()}


def turned_by(a: Array, b: Array) -> Array:
    """Returns 1 - cos of the vectors along the last axis, f64[...]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    turned: Array = 1 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return turned


class RemovalLoss(RewriteLoss):
    """The error of the outputs without layers; the level of layer 3, named `3`, is 0 or 1."""

    def __init__(self, module: Module, source: ActivationSource, samples: Samples) -> None:
        outputs = OutputError(module, source, samples, "pass `drop-layers`")
        super().__init__(outputs, lambda levels: _without(module, levels), str(module.graph))


def _without(module: Module, levels: Mapping[str, float]) -> Module:
    return without(module, [int(name) for name, level in levels.items() if level == 0])


def removal_units(loss: RewriteLoss, numbers: Sequence[int]) -> tuple[Unit, ...]:
    """Returns a unit per layer: without it, at the loss measured, or with it."""
    levels = np.array([0.0, 1.0])
    return tuple(Unit(str(n), levels, np.array([loss.loss({str(n): 0.0}), 0.0])) for n in numbers)


def knapsack(
    units: Sequence[Unit], layers: Mapping[int, Layer], fraction: float, count: int
) -> Solution:
    """Returns the layers to leave out so that least is lost, as a choice among the units.

    Source: Zhang et al., LAPTOP-Diff, 2024, eq. 6.

    Args:
        units: Of `removal_units`.
        layers: By number.
        fraction: Least fraction of the parameters of these layers that goes; 0 for a `count`.
        count: How many layers go.

    Raises:
        TargetError: When all together are too few.
    """
    sizes = [float(num_parameters(layers[int(unit.name)])) if fraction else 1.0 for unit in units]
    gone = fraction * sum(sizes) if fraction else float(count)
    costs = SeparateCosts([np.array([0.0, size]) for size in sizes])
    return solve(Problem(tuple(units), costs, sum(sizes) - gone), "dp")
