"""Prunes a module at random and compares with the masked model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.verify import check
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.pruning.plan import Plan, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module
from tests.passes.pruning.masked import run_masked

Array = np.ndarray[Any, Any]

# sums of fewer terms are ordered otherwise: some thousand terms at one f64 eps each
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Outcome:
    """What a random pruning did.

    Attributes:
        groups: Number of groups.
        pruned: Groups that lost positions.
        error: Largest difference from the masked model, relative to its largest output.
        change: The same from the dense model.
    """

    groups: int
    pruned: int
    error: float
    change: float


def random_choice(coupling: Coupling, rng: np.random.Generator) -> dict[Group, Array]:
    """Keeps a random number of random positions of every group."""
    choice: dict[Group, Array] = {}
    for group in coupling.groups:
        count = int(rng.integers(1, group.size + 1))
        rows = np.stack(
            [np.sort(rng.permutation(group.size)[:count]) for _ in range(group.num_blocks)]
        )
        choice[group] = rows if group.num_blocks > 1 else rows[0]
    return choice


def prune_and_compare(module: Module, inputs: Mapping[str, Any], seed: int) -> Outcome:
    """Prunes a copy by a plan that went through JSON, verifies it, and compares."""
    dense, pruned = Coupling(module), Coupling(module.clone())
    plan = make_plan(dense, random_choice(dense, np.random.default_rng(seed)))
    document = json.loads(json.dumps(plan.to_json()))
    slice_module(pruned, choice_of(Plan.from_json(document), pruned))
    check(pruned.module)
    actual = evaluate(pruned.module, inputs, oracle=True)
    expected = run_masked(dense, document, inputs)
    plain = evaluate(module, inputs, oracle=True)
    return Outcome(
        len(dense.groups), len(plan.groups), _distance(actual, expected), _distance(plain, expected)
    )


def _distance(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    worst = 0.0
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        left, right = np.asarray(actual[name], float), np.asarray(array, float)
        assert left.shape == right.shape, name
        assert np.isfinite(right).all(), f"{name} is not finite: it tests nothing"
        scale = max(float(np.abs(right).max(initial=0.0)), 1e-6)
        worst = max(worst, float(np.abs(left - right).max(initial=0.0)) / scale)
    return worst
