"""Hidden channels of a feed-forward block divided among experts.

Channels that stand next to each other in meaning go to one expert: `balanced` is k-means whose
groups have given sizes. What channels are compared by is the method:

- `clustered`: the rows of their first layer, at length 1 (MoEfication);
- `coactivated`: on which tokens they are among the strongest (MoEfication's graph of co-activation,
  whose edges are the inner products of these columns);
- `rated`: the same columns; centres are the channels that are strongest most often, and those
  before them go to the shared expert (CMoE);
- `ranked`: importance alone: the most important ones are shared, the others dealt out in turn, so
  that experts weigh alike (LLaMA-MoE v2).

Source: Zhang et al., MoEfication, 2022, section 3.2; Pei et al., CMoE, 2025, section 3.2; Qu et
al., LLaMA-MoE v2, 2024, section 3.2; Wang et al., HMoE, 2024, section 3.2 (unequal sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROUNDS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Who has which hidden channels; every channel once.

    Args:
        shared: i64[S], those that compute every token.
        experts: For every expert i64[F_e].
    """

    shared: Array
    experts: tuple[Array, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden channels by expert."""
        return tuple(len(each) for each in self.experts)


def equal_sizes(hidden: int, parts: int) -> list[int]:
    """Returns sizes that differ by at most one."""
    return [hidden // parts + (part < hidden % parts) for part in range(parts)]


def rising_sizes(hidden: int, parts: int) -> list[int]:
    """Returns sizes that rise evenly, the last three times the first (HMoE's arithmetic ones)."""
    ends = np.cumsum(np.linspace(0.5, 1.5, parts)) if parts > 1 else np.ones(1)
    edges = np.rint(ends / ends[-1] * hidden).astype(int)
    return [int(size) for size in np.diff(edges, prepend=0)]


def drawn(hidden: int, shared: int, sizes: Sequence[int], rng: np.random.Generator) -> Parts:
    """Returns channels divided at random."""
    return _cut(rng.permutation(hidden), shared, sizes)


def ranked(importance: Array, shared: int, sizes: Sequence[int]) -> Parts:
    """Returns the most important channels as shared ones, the others dealt out by importance."""
    order = np.argsort(-importance, kind="stable")
    room = list(sizes)
    dealt: list[list[int]] = [[] for _ in sizes]
    turn = 0
    for channel in order[shared:].tolist():
        # forth and back, so that no expert has the better one of every round
        while True:
            place, back = turn % len(sizes), turn // len(sizes) % 2
            expert = len(sizes) - 1 - place if back else place
            turn += 1
            if room[expert]:
                break
        room[expert] -= 1
        dealt[expert].append(channel)
    return Parts(np.sort(order[:shared]), tuple(np.sort(np.array(each, int)) for each in dealt))


def grouped(
    features: Array,
    importance: Array | None,
    shared: int,
    sizes: Sequence[int],
    rng: np.random.Generator,
    rounds: int = _ROUNDS,
) -> Parts:
    """Returns channels divided by likeness of their features.

    Args:
        features: f[F, K].
        importance: f[F]: the highest are shared, and the next ones the first centres; None draws
            the centres.
        shared: How many are shared.
        sizes: Of the experts.
        rng: Draws.
        rounds: Of centres and groups in turn.
    """
    order = np.arange(len(features)) if importance is None else np.argsort(-importance)
    kept, rest = np.sort(order[:shared]), order[shared:]
    rows = features[rest].astype(np.float64)
    first = rng.permutation(len(rest)) if importance is None else np.arange(len(rest))
    owner = balanced(rows, rows[first[: len(sizes)]], sizes, rounds)
    return Parts(kept, tuple(np.sort(rest[owner == expert]) for expert in range(len(sizes))))


def balanced(rows: Array, centres: Array, sizes: Sequence[int], rounds: int = _ROUNDS) -> Array:
    """Returns the group of every row, i64[F]: k-means whose groups have given sizes.

    Args:
        rows: f64[F, K].
        centres: f64[E, K], to begin with.
        sizes: Of the groups, their sum is F.
        rounds: Most rounds.
    """
    owner = np.full(len(rows), -1)
    for _ in range(rounds):
        # |r - c|^2 without |r|^2, which is the same for all centres
        cost = np.square(centres).sum(1)[None] - 2 * rows @ centres.T
        found = assigned(cost, sizes)
        if np.array_equal(found, owner):
            break
        owner = found
        centres = np.stack([rows[owner == group].mean(0) for group in range(len(sizes))])
    return owner


def assigned(cost: Array, sizes: Sequence[int]) -> Array:
    """Returns a group for every row, of given sizes, whose cost no exchange of two rows lowers.

    Args:
        cost: f[F, E].
        sizes: Of the groups.
    """
    count, groups = cost.shape
    room, owner = np.array(sizes), np.full(count, -1)
    preferred = np.argsort(cost, axis=1, kind="stable")
    nearest = np.sort(cost, axis=1)
    # those go first that lose most by not going where they belong
    regret = nearest[:, min(1, groups - 1)] - nearest[:, 0]
    for row in np.argsort(-regret, kind="stable"):
        for group in preferred[row]:
            if room[group]:
                room[group] -= 1
                owner[row] = group
                break
    changed = True
    while changed:
        changed = False
        for a in range(groups):
            for b in range(a + 1, groups):
                changed |= _exchanged(cost, owner, a, b)
    return owner


def _exchanged(cost: Array, owner: Array, a: int, b: int) -> bool:
    """Exchanges rows of two groups while that lowers the cost."""
    ours, theirs = np.flatnonzero(owner == a), np.flatnonzero(owner == b)
    if not len(ours) or not len(theirs):
        return False
    out, back = cost[ours, b] - cost[ours, a], cost[theirs, a] - cost[theirs, b]
    first, second = np.argsort(out, kind="stable"), np.argsort(back, kind="stable")
    count = min(len(first), len(second))
    gains = out[first[:count]] + back[second[:count]]
    scale = np.abs(cost).max() or 1.0
    better = int((gains < -1e-12 * scale).sum())  # both rise: the first ones are the best
    owner[ours[first[:better]]] = b
    owner[theirs[second[:better]]] = a
    return better > 0


def strongest(hidden: Array, fraction: float) -> Array:
    """Returns which channels are among the strongest of each token, bool[N, F]."""
    size = np.abs(hidden)
    count = max(1, int(fraction * size.shape[1]))
    least = np.partition(size, -count, axis=1)[:, -count]
    return size >= least[:, None]


def unit_rows(rows: Array) -> Array:
    """Returns rows at length 1; zeros stay zeros."""
    wide = rows.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    found: Array = wide / np.where(length == 0, 1, length)
    return found


def _cut(order: Array, shared: int, sizes: Sequence[int]) -> Parts:
    ends = np.cumsum([shared, *sizes])
    cuts = [np.sort(part) for part in np.split(order[: ends[-1]], ends[:-1])]
    return Parts(cuts[0], tuple(cuts[1:]))
