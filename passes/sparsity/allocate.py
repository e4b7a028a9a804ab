"""How sparse each layer becomes, so that all together are as sparse as was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regraft.ir.module import Module
from regraft.passes.calibration.output_error import OutputError, RewriteLoss
from regraft.passes.calibration.tied import Matrices
from regraft.passes.plots import Plot
from regraft.passes.solver import (
    CurveStore,
    Problem,
    SeparateCosts,
    Words,
    additivity,
    solve,
    solver_plots,
)
from regraft.passes.solver.curves import measure_curves
from regraft.passes.solver.spectral import spectral_weights, tail_exponent
from regraft.passes.sparsity.masks import Pattern, Scope
from regraft.passes.sparsity.methods import Layer, Method, scores, sparse

Array = np.ndarray[Any, Any]
Allocation = Literal["uniform", "global", "spectral", "dp"]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Densities at which losses are measured."""

_JOINT = 6
MAX_MEASURED = 16
"""Samples that outputs are compared on: every level of every layer runs them."""


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """Fraction that goes of every layer, with what choosing them cost.

    Args:
        rates: f64[layers].
        num_measured: Runs that were made.
        r_squared: Of joint losses against sums of single ones; None where none were measured.
        plots: What was measured and chosen.
    """

    rates: Array
    num_measured: int = 0
    r_squared: float | None = None
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, slots=True)
class Scorer:
    """How numbers of a layer are chosen."""

    method: Method
    scope: Scope


def spectral_rates(exponents: Sequence[float], sizes: Sequence[int], rate: float) -> Array:
    """Returns rates in the proportions of spectra, whose mean over all numbers is `rate`.

    A layer that would lose more than everything loses everything, and the others more.

    Args:
        exponents: Of the tail of each layer's spectrum.
        sizes: Numbers of each layer.
        rate: Fraction that goes of all.
    """
    wanted = spectral_weights(exponents)
    size = np.asarray(sizes, np.float64)
    rates = np.zeros(len(size))
    free = np.ones(len(size), bool)
    for _ in range(len(size)):
        rest = rate * size.sum() - size[~free].sum()
        rates[free] = wanted[free] * rest / float((size * wanted)[free].sum())
        rates[~free] = 1.0
        over = free & (rates > 1)
        if not over.any():
            break
        free &= ~over
    return rates


def global_rates(layers: Sequence[Layer], method: Method, rate: float) -> Array:
    """Returns the rates at which one threshold on the scores of all layers cuts each."""
    every = np.concatenate([scores(layer, method).ravel() for layer in layers])
    num_gone = round(rate * every.size)
    if not num_gone:
        return np.zeros(len(layers))
    threshold = np.partition(every, num_gone - 1)[num_gone - 1]
    return np.array([float((scores(each, method) <= threshold).mean()) for each in layers])


def measured_rates(
    module: Module,
    items: Sequence[Matrices],
    layers: Sequence[Layer],
    scorer: Scorer,
    rate: float,
    outputs: OutputError,
    curves: Path | None,
) -> Rates:
    """Returns the rates that lose least at the outputs, by the budget solver.

    Args:
        module: The module; it is not changed.
        items: The layers' constants.
        layers: What the method reads.
        scorer: How numbers are chosen within a layer.
        rate: Fraction that goes of all.
        outputs: Judges copies.
        curves: Keeps measurements.
    """
    names = [f"w{idx}" for idx in range(len(items))]

    def rewritten(levels: Mapping[str, float]) -> Module:
        copy = module.clone()
        for name, level in levels.items():
            idx = names.index(name)
            stack = sparse(layers[idx], scorer.method, Pattern(), 1 - level, scorer.scope)
            items[idx].overwrite(copy.weights, stack)
        return copy

    text = f"{module.graph} {scorer}"
    source = RewriteLoss(outputs, rewritten, text)
    store = CurveStore(curves)
    units = measure_curves(source, dict.fromkeys(names, LEVELS), store)
    sizes = [float(item.size) for item in items]
    costs = SeparateCosts([np.array(LEVELS) * size for size in sizes])
    problem = Problem(units, costs, (1 - rate) * sum(sizes))
    found = solve(problem, "dp")
    joint = additivity(source, units, count=_JOINT, store=store)
    levels = found.levels(problem)
    rates = np.array([1 - levels[name] for name in names])
    called = {name: item.name for name, item in zip(names, items, strict=True)}
    plots = solver_plots(
        problem, found.choice, Words(called, "fraction of numbers kept", "numbers")
    )
    return Rates(rates, store.num_measured, joint.r_squared, plots)


def exponents_of(layers: Sequence[Layer]) -> list[float]:
    """Returns the exponent of the tail of each layer's spectrum."""
    return [tail_exponent(layer.stack.transpose(2, 1, 0)) for layer in layers]
