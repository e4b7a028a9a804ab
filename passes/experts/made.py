"""Experts made of one feed-forward block: copies, copies in part drawn anew, and shards of copies.

With `w` the weights of the chosen experts, a layer of `E` copies computes `sum(w) * FFN(x)`: the
block itself where the weights sum to 1.

*Virtual groups* cut every copy into `G` shards. The shards of a copy stand side by side and have
one row of the router between them, so that the top `k = t * G` are whole copies: all weights of a
copy are equal, each shard's a G-th of what the copy's would be, and `G` on the last layer makes up
for it. Not on the layers before: only `relu` lets a positive factor through.

*Drop-Upcycling* draws `floor(r * F)` hidden channels of every expert anew, from a normal
distribution with mean and deviation of what they replace. The channels of an expert are the same
in all its matrices, or (`independent`, as the released converter does it) chosen matrix by matrix.
The converter also permutes the channels of each expert, which changes no result and no statistic.

*Adapters* read what the one block gives, F = FFN(x): `F + sum(w_i U_i gelu(D_i F))`, where `U_i`
begins at zero. *LoRA experts* read what the block reads: `F + sum(w_i U_i D_i x)`.

Source: Komatsuzaki et al., Sparse Upcycling, 2023, section 3; He et al., Upcycling Large Language
Models into Mixture of Experts, 2024, section 3.2; Nakamura et al., Drop-Upcycling, 2025, section 3;
Wu et al., Parameter-Efficient Sparsity Crafting, 2024, section 3.2; Dou et al., LoRAMoE, 2024,
section 3.2 (here for the whole block).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.experts.dense import Dense

Array = np.ndarray[Any, Any]

_MATRICES = ("up", "gate", "down")
_PARTS = ("up", "gate", "down", "up_bias", "gate_bias")


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The weights of experts, laid out as the operator `moe` reads them.

    Args:
        weights: By operand of `moe`: up and gate f[E, F, D], down f[E, O, F], biases f[E, *].
        drawn: By matrix, the hidden channels of every expert that were drawn anew, i64[E, n].
    """

    weights: dict[str, Array]
    drawn: dict[str, Array]


def copies(dense: Dense, num: int) -> Experts:
    """Returns `num` experts, each the whole block."""
    return Experts(
        {name: np.repeat(array[None], num, axis=0) for name, array in _parts(dense).items()}, {}
    )


def adapters(
    num_read: int,
    num_given: int,
    num: int,
    rank: int,
    seed: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Experts:
    """Returns experts of `rank` hidden channels whose last layer is zero.

    Args:
        num_read: Channels that they read.
        num_given: Channels that they give.
        num: How many.
        rank: Hidden channels.
        seed: Of the first layer.
        dtype: Of the weights.
    """
    rng = np.random.default_rng([*seed, rank])
    up = rng.normal(0, num_read**-0.5, (num, rank, num_read))
    down = np.zeros((num, num_given, rank), dtype)
    return Experts({"up": up.astype(dtype), "down": down}, {})


def scaled(experts: Experts, gain: float, bias_gain: float) -> Experts:
    """Returns experts whose last layer is multiplied by `gain`, its bias by `bias_gain`."""
    gains = {"down": gain, "down_bias": bias_gain}
    weights = {
        name: array
        if gains.get(name, 1) == 1
        else (array.astype(np.float64) * gains[name]).astype(array.dtype)
        for name, array in experts.weights.items()
    }
    return Experts(weights, experts.drawn)


def redrawn(
    experts: Experts, ratio: float, seed: tuple[int, ...], *, independent: bool, first: int = 0
) -> Experts:
    """Returns experts with a part of their hidden channels drawn anew (Drop-Upcycling).

    What is drawn depends on an expert's number alone, of which `first` is that of the first one.
    """

    def draw(rng: np.random.Generator, old: Array) -> Array:
        new: Array = rng.normal(old.mean(), old.std(), old.shape)
        return new

    return _changed(experts, ratio, seed, draw, independent=independent, first=first)


def disturbed(
    experts: Experts, ratio: float, noise: float, seed: tuple[int, ...], *, independent: bool,
    first: int = 0,
) -> Experts:  # fmt: skip
    """Returns experts with normal noise of deviation `noise` on a part of their channels.

    `first` is as of `redrawn`.
    """

    def draw(rng: np.random.Generator, old: Array) -> Array:
        return old + rng.normal(0, noise, old.shape)

    return _changed(experts, ratio, seed, draw, independent=independent, first=first)


def _changed(
    experts: Experts,
    ratio: float,
    seed: tuple[int, ...],
    draw: Callable[[np.random.Generator, Array], Array],
    *,
    independent: bool,
    first: int,
) -> Experts:
    """Replaces rows of `up` and `gate`, columns of `down`, and the hidden channels' biases.

    Every part has its own generator: it is the same whether the others are made or not.
    """
    known = [(name, array) for name, array in experts.weights.items() if name != "down_bias"]
    if not known:
        return experts
    num, hidden = len(known[0][1]), known[0][1].shape[2 if known[0][0] == "down" else 1]
    count = int(ratio * hidden)
    weights = {name: array.copy() for name, array in experts.weights.items()}
    drawn = {
        name: np.zeros((num, count), np.int64) for name in _MATRICES if name in experts.weights
    }
    for expert in range(num if count else 0):
        shared = _channels([*seed, first + expert], hidden, count)
        for idx, part in enumerate(_PARTS):
            if part not in weights:
                continue
            matrix = part.removesuffix("_bias")
            place = (*seed, first + expert, 1 + _MATRICES.index(matrix))
            own = _channels(place, hidden, count) if independent else shared
            if part == matrix:
                drawn[part][expert] = own
            content = weights[part][expert]
            at = (slice(None), own) if part == "down" else own
            rng = np.random.default_rng([*seed, first + expert, len(_PARTS) + idx])
            content[at] = draw(rng, content[at].astype(np.float64)).astype(content.dtype)
    return Experts(weights, drawn)


def _channels(seed: Sequence[int], hidden: int, count: int) -> Array:
    """Returns some of the hidden channels, in order."""
    chosen: Array = np.random.default_rng([*seed]).permutation(hidden)[:count]
    return np.sort(chosen)


def router_of(
    num_channels: int, num: int, groups: int, deviation: float, seed: tuple[int, ...]
) -> Array:
    """Returns f64[D, E]: normal rows, one per copy and equal for its shards; zeros for 0."""
    rng = np.random.default_rng([*seed, num])
    rows = rng.normal(0, deviation, (num_channels, num // groups))
    return np.repeat(rows, groups, axis=1)


def _parts(dense: Dense) -> dict[str, Array]:
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    found = {name: getattr(dense, name) for name in names}
    return {name: array for name, array in found.items() if array is not None}
