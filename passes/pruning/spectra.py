"""Sizes by the spectra of weights alone: groups whose layers learned more keep more."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.passes.analysis.coupling import Coupling
from regraft.passes.pruning.alike import Classes
from regraft.passes.pruning.allocate import settle
from regraft.passes.pruning.cost import Cost
from regraft.passes.pruning.sensitivity import ClassCosts, class_options
from regraft.passes.solver import Problem, Unit, solve
from regraft.passes.solver.spectral import spectral_weights, tail_exponent

Array = np.ndarray[Any, Any]


def spectral_sizes(coupling: Coupling, cost: Cost, budget: float, classes: Classes) -> Array:
    """Returns sizes next to a budget, i64[groups].

    What goes of a class is in proportion to the mean tail exponent of the matrices and kernels
    that its groups stand in.

    Cost: O(windows) singular value decompositions per weight.
    """
    exponents: dict[str, float] = {}
    count = len(classes.limits.high)
    found: list[list[float]] = [[] for _ in range(count)]
    for group, number in zip(coupling.groups, classes.of, strict=True):
        for name in dict.fromkeys(name for name, _ in group.weights):
            stored = coupling.module.weights[name]
            if len(stored.shape) < 2 or min(stored.shape[:2]) < 2 or not stored.dtype.is_float:
                continue
            if name not in exponents:
                exponents[name] = tail_exponent(stored.numpy())
            found[number].append(exponents[name])
    mean = float(np.mean(list(exponents.values()))) if exponents else 1.0
    weights = spectral_weights([float(np.mean(each)) if each else mean for each in found])
    options = tuple(class_options(classes, idx) for idx in range(count))
    units = tuple(
        Unit(f"c{idx}", sizes / classes.limits.high[idx], np.zeros(len(sizes)))
        for idx, sizes in enumerate(options)
    )
    problem = Problem(units, ClassCosts(cost, classes, options), budget)
    choice = problem.cheapest
    if problem.fits(choice):
        choice = solve(problem, "spectral", weights=weights).choice
    sizes = np.array([each[k] for each, k in zip(options, choice, strict=True)], np.int64)
    return settle(cost, budget, classes, sizes)
