"""Scores of units from gradients: Fisher diagonal (OBD), SNIP, GraSP.

With `w` the weights of a unit and `g` the gradient of the loss on one sample:

- `fisher`: half the sum of `w² E[g²]`, what the loss grows by when the unit goes and curvature is
  the diagonal of the Fisher matrix (LeCun et al., OBD, 1990; Theis et al., 2018);
- `snip`: the sum of `|w E[g]|`, the sensitivity of the loss to a mask (Lee et al., SNIP, 2019);
- `grasp`: the sum of `w H E[g]`, what the norm of the gradient loses (Wang et al., GraSP, 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.weights import ArrayWeight
from regraft.passes.analysis.coupling.groups import Coupling
from regraft.passes.protocol import Context, GradientSource, Samples
from regraft.passes.pruning.measured import Slots, per_unit, places_of_groups, samples_of

Array = np.ndarray[Any, Any]
GradientCriterion = Literal["fisher", "snip", "grasp"]

_STEP = 1e-2
"""Length of the step of differences of gradients, over that of the weights: curvature hardly
changes within it, and f32 tells the gradients apart."""


def gradient_slots(coupling: Coupling, ctx: Context, criterion: GradientCriterion) -> Slots:
    """Returns the score of every unit in every weight that it stands in.

    Raises:
        UsageError: Without gradients or samples.
    """
    if ctx.gradients is None:
        raise UsageError(
            f"pass `prune`, option `criterion`: `{criterion}` needs gradients, and there is no "
            "source",
            hint="install PyTorch (`pip install regraft[torch]`), or use criterion=l2",
        )
    places = places_of_groups(coupling)
    store, samples = coupling.module.weights, samples_of(ctx)
    weights = {name: store[name].numpy().astype(np.float64) for name in places}
    match criterion:
        case "fisher":
            found = _mean(_squares(ctx.gradients, coupling.module, samples, places))
            elements = {name: np.square(w) * found[name] / 2 for name, w in weights.items()}
        case "snip":
            found = _mean(ctx.gradients.gradients(coupling.module, samples, list(places)))
            elements = {name: np.abs(w * found[name]) for name, w in weights.items()}
        case "grasp":
            found = hessian_gradient(coupling.module, ctx.gradients, samples, weights)
            elements = {name: w * found[name] for name, w in weights.items()}
    slots: Slots = {group: [] for group in coupling.groups}
    for name, axes in places.items():
        for axis, group in axes:
            space = coupling.builder.weights[name][axis]
            slots[group].append((name, per_unit(elements[name], axis, space, group)))
    return slots


def hessian_gradient(
    module: Module, source: GradientSource, samples: Samples, weights: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns the Hessian of the mean loss times its gradient, by central differences.

    Args:
        module: The module; it is not changed.
        source: Gives gradients.
        samples: What the loss is the mean over.
        weights: What the loss is a function of, f64 by name.
    """
    names = list(weights)
    gradient = _mean(source.gradients(module, samples, names))
    lengths = [
        float(np.sqrt(sum(np.square(each).sum() for each in arrays.values())))
        for arrays in (weights, gradient)
    ]
    step = _STEP * lengths[0] / max(lengths[1], 1e-30)
    ends = []
    for sign in (1, -1):
        moved = module.clone()
        for name, array in weights.items():
            dtype = moved.weights[name].dtype.numpy
            ahead = (array + sign * step * gradient[name]).astype(dtype)
            moved.weights.set(name, ArrayWeight(ahead))
        ends.append(_mean(source.gradients(moved, samples, names)))
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in names}


def _squares(
    source: GradientSource, module: Module, samples: Samples, names: Mapping[str, Any]
) -> Iterator[dict[str, Array]]:
    for found in source.gradients(module, samples, list(names)):
        yield {name: np.square(array.astype(np.float64)) for name, array in found.items()}


def _mean(items: Iterator[dict[str, Array]]) -> dict[str, Array]:
    """Returns the means over samples, f64."""
    total: dict[str, Array] = {}
    count = 0
    for found in items:
        count += 1
        for name, array in found.items():
            total[name] = total.get(name, 0.0) + array.astype(np.float64)
    return {name: array / count for name, array in total.items()}
