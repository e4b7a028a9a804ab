"""Whether losses add up: what allocation assumes, measured on joint choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.solver.curves import CurveStore, LossSource
from regraft.passes.solver.problem import Unit

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Additivity:
    """Predicted and measured losses of joint choices.

    Args:
        predicted: f64[choices]: sums of single losses.
        measured: f64[choices].
    """

    predicted: Array
    measured: Array

    @property
    def r_squared(self) -> float:
        """Of measured losses by predicted ones times the best factor: 1 when sums are right.

        A factor for all changes no allocation.
        """
        scale = float((self.predicted * self.measured).sum())
        scale /= max(float(np.square(self.predicted).sum()), 1e-300)
        rest = float(np.square(self.measured - scale * self.predicted).sum())
        spread = float(np.square(self.measured - self.measured.mean()).sum())
        return 1.0 - rest / spread if spread > 0 else float(rest == 0)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between the two."""
        ranks = [np.argsort(np.argsort(x)).astype(float) for x in (self.predicted, self.measured)]
        if len(ranks[0]) < 2:
            return 1.0
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def additivity(
    source: LossSource,
    units: Sequence[Unit],
    store: CurveStore | None = None,
    *,
    count: int = 16,
    least: float = 0.0,
    seed: int = 0,
) -> Additivity:
    """Measures joint choices at random: between none and all units at random levels.

    Args:
        source: Measures.
        units: Units with their curves.
        store: Measurements known, and where new ones go.
        count: Number of choices.
        least: The lowest level that they take, such as where a budget will end.
        seed: Of the choices.
    """
    store = CurveStore() if store is None else store
    rng = np.random.default_rng(seed)
    predicted, measured = [], []
    for place in range(count):
        share = (place + 1) / count
        levels: dict[str, float] = {}
        total = 0.0
        for unit in units:
            first = min(int(np.searchsorted(unit.levels, least)), unit.count - 1)
            option = unit.count - 1
            if rng.random() < share:
                option = int(rng.integers(first, unit.count))
            total += float(unit.losses[option])
            if unit.levels[option] != 1:
                levels[unit.name] = float(unit.levels[option])
        predicted.append(total)
        measured.append(store.get(source, levels) if levels else 0.0)
    return Additivity(np.array(predicted), np.array(measured))
