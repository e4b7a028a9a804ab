"""Fits a plan to a measured latency: a search over the FLOPs that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regraft.ir.errors import TargetError
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.protocol import LatencySource
from regraft.passes.pruning.plan import Choice, choice_of, make_plan
from regraft.passes.pruning.slicing import slice_module

LATENCY_TOLERANCE = 0.05
"""How far the measured ratio may be from the target, relative: clocks repeat to a few percent."""

_MAX_TRIALS = 8
_LEAST = 0.02


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the search ended with: a choice, and the latency it has, as a fraction."""

    choice: Choice
    achieved: float


def fit_latency(
    coupling: Coupling,
    wanted: float,
    choice_at: Callable[[float], Choice],
    source: LatencySource,
) -> Fitted:
    """Returns the choice whose measured latency is nearest to the one wanted.

    Bisects the fraction of FLOPs kept, from a first guess that latency follows FLOPs; ends when a
    trial is within half of the tolerance.

    Args:
        coupling: The module's coupling; the module stays as it is.
        wanted: The latency wanted, as a fraction of the module's.
        choice_at: Gives a choice for a fraction of FLOPs.
        source: Measures.

    Raises:
        TargetError: When no trial is within the tolerance: names the nearest.
    """
    low, high, guess = _LEAST, 1.0, wanted
    best: Fitted | None = None
    for _ in range(_MAX_TRIALS):
        choice = choice_at(guess)
        achieved = _measured(coupling, choice, source)
        if best is None or abs(achieved - wanted) < abs(best.achieved - wanted):
            best = Fitted(choice, achieved)
        if abs(achieved / wanted - 1) <= LATENCY_TOLERANCE / 2:
            break
        if achieved > wanted:
            high = guess
        else:
            low = guess
        # the straight line through this trial and the origin, kept within what is left
        step = guess * wanted / achieved
        guess = step if low < step < high else (low + high) / 2
    if best is None or abs(best.achieved / wanted - 1) > LATENCY_TOLERANCE:
        nearest = "nothing" if best is None else f"{best.achieved:.3g}"
        raise TargetError(
            f"pass `prune`: latency:{wanted:g} was asked for, latency:{nearest} is nearest "
            f"(tolerance {LATENCY_TOLERANCE:.0%})",
            hint="what stays is pinned or does not depend on widths; ask for what is near",
        )
    return best


def _measured(coupling: Coupling, choice: Choice, source: LatencySource) -> float:
    """Returns the latency of a pruned copy over that of the module."""
    copy = coupling.module.clone()
    trial = Coupling(copy)
    slice_module(trial, choice_of(make_plan(coupling, choice), trial))
    drop_dead_code(copy)
    return source.ratio(coupling.module, copy)
