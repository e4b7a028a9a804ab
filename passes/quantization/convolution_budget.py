"""Which convolutions stay in float so that what the others change stays within a budget.

Each is put in 8 bits alone, and what that does to the outputs is measured: squares of errors of
different layers nearly add up. What a part of the budget is worth in time is then raised until the
choice of least time, crossings between float and codes included, is within the budget, measured on
the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.quantization.convolution_codes import Codes, write_codes
from regraft.passes.quantization.convolution_costs import LEAST_GAIN, Piece, choose
from regraft.passes.quantization.decisions import Judge

_SAMPLES_ALONE = 8
"""Samples that a single convolution is judged on; the whole is judged on all."""
_TRIES = 6
_STEPS = 30
_PRICES = (1.0, 1e13)
"""Of the whole budget, in ns of a run."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs in 8 bits.

    Args:
        inside: Pieces, by index.
        reasons: Why other convolutions do not, by index.
        damage: What the choice uses of the budget, measured; 1 is all of it.
        alone: What each piece would use by itself; empty where that was not asked.
    """

    inside: frozenset[int]
    reasons: Mapping[int, str]
    damage: float
    alone: Mapping[int, float]


def within_budget(
    module: Module,
    pieces: Sequence[Piece],
    sizes: Mapping[Value, int],
    codes: Codes,
    judge: Judge,
    least_gain: float = LEAST_GAIN,
) -> Choice:
    """Returns the fastest choice of pieces that is within the budget.

    Args:
        module: The module, all in float; it is not changed.
        pieces: What there is to choose.
        sizes: Numbers of every value that a piece reads or makes.
        codes: Ranges and weights.
        judge: Knows the float module's outputs and the budget.
        least_gain: Part of the time of all that the whole has to gain.
    """
    inside, reasons = choose(pieces, sizes, least_gain=least_gain)
    if not inside:
        return Choice(frozenset(), reasons, 0.0, {})
    damage = _damage(module, pieces, inside, codes, judge)
    if damage <= 1:
        return Choice(frozenset(inside), reasons, damage, {})
    alone = {
        idx: _damage(module, pieces, {idx}, codes, judge, _SAMPLES_ALONE)
        if pieces[idx].shape is not None or len(pieces[idx].inputs) > 1 else 0.0
        for idx in sorted(inside)
    }  # fmt: skip
    budget = 1.0
    for _ in range(_TRIES):
        chosen = _fastest(pieces, sizes, alone, budget, least_gain)
        if not chosen:
            break
        damage = _damage(module, pieces, chosen, codes, judge)
        if damage <= 1:
            why = dict(reasons)
            for idx in inside - chosen:
                if pieces[idx].shape is not None:
                    why[idx] = _reason(alone[idx])
            return Choice(frozenset(chosen), why, damage, alone)
        budget *= 0.8 / damage if damage < 4 else 0.25
    why = {
        idx: reasons.get(idx, _reason(alone.get(idx, 0.0)))
        for idx, piece in enumerate(pieces) if piece.shape is not None
    }  # fmt: skip
    return Choice(frozenset(), why, 0.0, alone)


def _reason(part: float) -> str:
    return (
        f"alone it would use {part:.0%} of what the outputs may change (`budget`); what the others "
        "leave is worth more elsewhere"
    )


def _damage(
    module: Module, pieces: Sequence[Piece], inside: set[int], codes: Codes, judge: Judge,
    count: int | None = None,
) -> float:  # fmt: skip
    values: dict[Value, Value] = {}
    copy = module.clone(values)
    write_codes(copy, [pieces[idx] for idx in sorted(inside)], codes, values)
    return judge.damage(copy, count)


def _fastest(
    pieces: Sequence[Piece],
    sizes: Mapping[Value, int],
    alone: Mapping[int, float],
    budget: float,
    least_gain: float,
) -> set[int]:
    """Returns the fastest pieces whose damage adds up to the budget, found by its price in time."""
    low, high = _PRICES
    best: set[int] = set()
    for _ in range(_STEPS):
        price = math.sqrt(low * high)
        prices = {idx: price * part for idx, part in alone.items()}
        chosen, _ = choose(pieces, sizes, prices, least_gain)
        if sum(alone.get(idx, 0.0) for idx in chosen) <= budget:
            best, high = chosen, price
        else:
            low = price
    return best
