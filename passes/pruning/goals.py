"""What pruning is to reach, how near it must come, and what stands in the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from regraft.ir.errors import UsageError
from regraft.passes.analysis.coupling import PinnedSpace
from regraft.passes.pruning.cost import MEASURES
from regraft.passes.pruning.latency import LATENCY_TOLERANCE

LATENCY = "latency"

_FREE_TOLERANCE = 0.01
_ROUNDED_TOLERANCE = 0.02
"""How far the achieved cost may be from the target, relative; wider when sizes are rounded."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A fraction of a measure.

    Args:
        measure: `flops`, `macs`, `params`, `bytes`, `latency`.
        fraction: Of the module before.
        tolerance: How far off counts as met, relative.
    """

    measure: str
    fraction: float
    tolerance: float

    @property
    def counted(self) -> str:
        """What is counted on the way: latency is first guessed from FLOPs."""
        return "flops" if self.measure == LATENCY else self.measure

    def met_by(self, achieved: float) -> bool:
        """Returns whether a fraction is near enough."""
        return abs(achieved / self.fraction - 1) <= self.tolerance

    def __str__(self) -> str:
        return f"{self.measure}:{self.fraction:g}"


def parse_goal(text: str, *, rounded: bool) -> Goal:
    """Returns the goal that `flops:0.5` states.

    Raises:
        UsageError: When it is none.
    """
    measure, _, number = text.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if measure not in (*MEASURES, LATENCY) or not 0 < fraction < 1:
        raise UsageError(
            f"pass `prune`, option `target`: `{text}` is no target",
            hint=f"write one of {', '.join((*MEASURES, LATENCY))} and a fraction: `flops:0.5`; "
            "or `redundant`",
        )
    tolerance = _ROUNDED_TOLERANCE if rounded else _FREE_TOLERANCE
    return Goal(measure, fraction, LATENCY_TOLERANCE if measure == LATENCY else tolerance)


def what_stops(pinned: tuple[PinnedSpace, ...]) -> str:
    """Names the reason that pins the most positions of weights, with the row that has most.

    Positions, not axes: every convolution pins the few taps of its kernel.
    """
    if not pinned:
        return "no weight has an axis that may shrink"
    counts: Counter[str] = Counter()
    for item in pinned:
        counts[item.why.reason] += _num_positions(item)
    reason = counts.most_common(1)[0][0]
    alike = [item for item in pinned if item.why.reason == reason]
    example = max(alike, key=_num_positions)
    return f"{example.why}; `regraft inspect --couplings` lists all"


def _num_positions(item: PinnedSpace) -> int:
    return item.size * len(item.weights)
