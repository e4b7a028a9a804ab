"""What Drop-Upcycling draws: how many channels, with which mean and deviation, from which seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, Row, Settings, at_most, held
from regraft.passes.experts.dense import Dense
from regraft.passes.experts.made import Experts, copies, redrawn

Array = np.ndarray[Any, Any]

_RATIOS = (0.1, 0.25, 0.5, 0.9)
_EXPERTS = 8
_SHAPES = ((64, 176), (128, 352))
_OUTSIDE = 1.0
"""Percent beyond three standard errors; 0.27 of normal numbers are."""


def _dense(channels: int, hidden: int) -> Dense:
    rng = np.random.default_rng([channels, hidden])
    up, gate, down = (
        (0.1 + rng.standard_normal(shape) / 8).astype(np.float32)
        for shape in ((hidden, channels), (hidden, channels), (channels, hidden))
    )
    return Dense(up, down, gate)


def _errors(before: Experts, after: Experts) -> Iterator[tuple[float, float]]:
    """Yields, per expert and matrix, errors of mean and deviation in standard errors."""
    for name, chosen in after.drawn.items():
        for expert, own in enumerate(chosen):
            place = (slice(None), own) if name == "down" else own
            old, new = (
                each.weights[name][expert][place].astype(np.float64) for each in (before, after)
            )
            yield (
                abs(new.mean() - old.mean()) / (old.std() / np.sqrt(new.size)),
                abs(new.std() - old.std()) / (old.std() / np.sqrt(2 * new.size)),
            )


def _changed(before: Experts, after: Experts, expert: int) -> dict[str, set[int]]:
    """Returns the hidden channels that differ, by matrix."""
    found = {}
    for name in ("up", "gate", "down"):
        apart = before.weights[name][expert] != after.weights[name][expert]
        rows = apart.any(0) if name == "down" else apart.any(1)
        found[name] = set(np.flatnonzero(rows).tolist())
    return found


def _drop(settings: Settings) -> Iterator[Row]:
    errors: list[tuple[float, float]] = []
    counts, shared, same, reproduced, apart = True, True, True, True, True
    for shape in _SHAPES:
        before = copies(_dense(*shape), _EXPERTS)
        nothing = redrawn(before, 0.0, (0,), independent=False)
        same &= all((nothing.weights[n] == a).all() for n, a in before.weights.items())
        for ratio in _RATIOS:
            for independent in (False, True):
                after = redrawn(before, ratio, (0,), independent=independent)
                errors += _errors(before, after)
                for expert in range(_EXPERTS):
                    found = _changed(before, after, expert)
                    sizes = {len(each) for each in found.values()}
                    counts &= sizes == {int(ratio * shape[1])}
                    shared &= independent or len(set(map(frozenset, found.values()))) == 1
            again, other = (redrawn(before, ratio, (s,), independent=True) for s in (0, 1))
            reproduced &= all((again.weights[n] == a).all() for n, a in after.weights.items())
            apart &= any((other.weights[n] != a).any() for n, a in after.weights.items())
    yield held("drop: floor(r F) hidden channels of every matrix differ", counts)
    yield held("drop: the same ones in all matrices of an expert", shared)
    for idx, what in enumerate(("mean", "deviation")):
        beyond = 100 * float(np.mean([each[idx] > 3 for each in errors]))
        note = f"of {len(errors)} slices; the largest {max(each[idx] for each in errors):.2f}"
        name = f"drop: {what}s beyond 3 standard errors of what was replaced"
        yield at_most(name, beyond, _OUTSIDE, "%", note)
    yield held("drop: r = 0 changes nothing", same)
    yield held("drop: the same seed gives the same, another one others", reproduced and apart)


MEASUREMENTS: tuple[Measurement, ...] = (Measurement("drop", "what Drop-Upcycling draws", _drop),)
