"""How sure a rewritten classifier has to be, so that it decides as the one before.

What the rewrite does to the leads of classes is measured on samples, and every lead that was seen
is held against every change that was seen, of whatever sample: few samples tell rare flips better
so than by counting them. Changes are taken as they are, not as a bell curve: on photographs a few
are several times as large as their deviation says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_RIVALS = 4
"""Classes next to the largest that may overtake it."""
_AIM = 0.5
"""Part of the flips that are allowed which the estimate may use up: other inputs are not these."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Which inputs the rewritten classifier decides.

    Args:
        lead: Least lead of the largest score over the next with which it answers.
        fallback: Share of the samples that is below it.
        flips: Share of the samples that the rewritten classifier decides otherwise.
        expected: Share of all inputs that it is expected to decide otherwise above the threshold.
        counted: Share of the samples that it does.
    """

    lead: float
    fallback: float
    flips: float
    expected: float
    counted: float


def find_threshold(before: Array, after: Array, agreement: float) -> Threshold:
    """Returns the least lead with which enough decisions stay.

    Args:
        before: f64[N, C], scores of the classifier before.
        after: f64[N, C], of the rewritten one.
        agreement: Share of the inputs whose decision has to stay.
    """
    allowed = 1 - agreement
    leads, changes = _leads(before, after)
    flipped = before.argmax(-1) != after.argmax(-1)
    seen = np.sort(changes, axis=None)
    below = np.searchsorted(seen, -leads, side="right") / seen.size
    risk = np.minimum(below.sum(-1), 1.0)
    order = np.argsort(-leads[:, 0], kind="stable")
    expected = np.cumsum(risk[order]) / len(order)
    counted = np.cumsum(flipped[order]) / len(order)
    fits = (expected <= _AIM * allowed) & (counted <= allowed)
    answered = int(np.flatnonzero(fits)[-1]) + 1 if fits[0] else 0
    if answered == 0:
        return Threshold(float("inf"), 1.0, float(flipped.mean()), 0.0, 0.0)
    last = order[answered - 1]
    lead = float(leads[last, 0]) if answered < len(order) else 0.0
    return Threshold(
        lead, 1 - answered / len(order), float(flipped.mean()), float(expected[answered - 1]),
        float(counted[answered - 1]),
    )  # fmt: skip


def threshold_at(before: Array, after: Array, lead: float) -> Threshold:
    """Returns what a given threshold does, for a lead that was found before."""
    leads, changes = _leads(before, after)
    flipped = before.argmax(-1) != after.argmax(-1)
    seen = np.sort(changes, axis=None)
    risk = np.minimum((np.searchsorted(seen, -leads, side="right") / seen.size).sum(-1), 1.0)
    answered = leads[:, 0] >= lead
    return Threshold(
        lead, 1 - float(answered.mean()), float(flipped.mean()), float((risk * answered).mean()),
        float((flipped & answered).mean()),
    )  # fmt: skip


def _leads(before: Array, after: Array) -> tuple[Array, Array]:
    """Returns leads of the largest score, f64[N, rivals], and how much larger they were before."""
    count = min(_RIVALS + 1, after.shape[-1])
    order = np.argsort(-after, axis=-1, kind="stable")[:, :count]
    new, old = (np.take_along_axis(scores, order, -1) for scores in (after, before))
    leads: Array = new[:, :1] - new[:, 1:]
    changes: Array = (old[:, :1] - old[:, 1:]) - leads
    return leads, changes
