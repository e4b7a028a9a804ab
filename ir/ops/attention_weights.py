"""How attention turns scores into weights: score modifiers and normalizers, as data with a meaning.

A modifier changes scores, or hides keys, before a normalizer makes weights of them:

```
selective   F[s, t] = sum of relu(score of head 0)[r, t] over visible r < s, 0 for t = 0 and for
            the key at the query's own position; score - F; F above `budget` hides (0: never)
threshold   only keys of positive score stay; score + gates[s] * (staying keys after t)
```

A normalizer makes weights of the visible scores; a row without keys gives zeros. n is the number
of visible keys of the row.

```
softmax     exp(score) / sum
two_pass    the same by mantissa and exponent apart: exp(x) = m * 2^k, no maximum is subtracted
clipped     clip((zeta - gamma) * softmax + gamma, 0, 1), where gamma becomes gamma - alpha / n
stablemax   f(score) / sum, f(x) = x + 1 for x >= 0, 1 / (1 - x) below
softplus    A = softplus(score) / sum; where power > 0: relu(n A - offset)^power / sum,
            offset 0 for n <= 3
entmax      [(alpha - 1) score - tau]_+ ^ (1 / (alpha - 1)), tau such that the sum is 1; alpha 2 is
            sparsemax, 1 softmax; the operand `alpha` has one per head
top_k       softmax over the k largest scores, all of a tie
```

Sinks are one more visible score per head, which n does not count and whose weight is cut off; the
k largest scores are found without it.

A float mask hides as well where it is at most `HIDDEN`, since exporters write the lowest number of
a type for -inf: a normalizer that is no softmax would give such a key weight. `two_pass` is one: a
row whose keys all have such a number keeps its weights.

Source: Prieto et al. 2025 (stablemax); Bondarenko et al. 2023 (clipped); Gao et al. 2025 (softplus,
LSSAR); Peters et al. 2019, Correia et al. 2019 (entmax); Leviathan et al. 2025 (selective);
Opper et al. 2025 (threshold); Dukhan and Ablavatski 2020 (two_pass).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

HIDDEN = -9000.0
"""A float mask hides at and below this number, where softmax does not make weights."""

_BISECTIONS = 80


@dataclass(frozen=True, slots=True)
class Normalizer:
    """What makes weights of scores.

    Args:
        name: As the attribute `normalizer` has it.
        parameters: Defaults by name, in the order of the attribute `normalizer_parameters`.
        sums_to_one: Whether the weights of a row with keys do (sinks aside).
    """

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    sums_to_one: bool = True

    def read(self, given: tuple[float, ...]) -> dict[str, float]:
        """Returns the parameters by name; those not given have their default."""
        names = list(self.parameters)
        return {**self.parameters, **dict(zip(names, given, strict=False))}


NORMALIZERS: Mapping[str, Normalizer] = {
    each.name: each
    for each in (
        Normalizer("softmax"),
        Normalizer("two_pass"),
        Normalizer("clipped", {"gamma": 0.0, "zeta": 1.0, "alpha": 0.0}, sums_to_one=False),
        Normalizer("stablemax"),
        Normalizer("softplus", {"power": 0.0, "offset": 1.0}),
        Normalizer("entmax", {"alpha": 1.5}),
        Normalizer("top_k", {"k": 1.0}),
    )
}

OF_SOFTMAX = frozenset({"softmax", "two_pass", "clipped", "top_k"})
"""Normalizers that change the weights of a softmax, which has a place for sinks itself."""

MODIFIERS: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "selective": {"budget": 0.0},
    "threshold": {},
}
"""Score modifiers: defaults of their parameters by name."""

FEW_KEYS = 3
"""Rows of at most this many keys are re-weighted without an offset."""


def is_softmax(attrs: Mapping[str, Any]) -> bool:
    """Whether an `attention` has the softmax of its scores as its weights."""
    return bool(attrs["normalizer"] == "softmax" and attrs["modifier"] == "none")


def hidden_at(attrs: Mapping[str, Any]) -> float:
    """Returns the number at and below which a float mask hides a key altogether."""
    is_plain = attrs["normalizer"] in ("softmax", "two_pass") and attrs["modifier"] == "none"
    return -np.inf if is_plain else HIDDEN


def modified(
    attrs: Mapping[str, Any], scores: Array, visible: Array, gates: Array | None, positions: Array
) -> tuple[Array, Array]:
    """Returns scores [B, H, S, T] and visible keys after the modifier.

    Args:
        attrs: Attributes of `attention`.
        scores: [B, H, S, T], finite.
        visible: bool [B, H, S, T].
        gates: [B, H, S], for the modifier `threshold`.
        positions: Key position of every query, [S] or [B, S, 1] broadcast to it.
    """
    if attrs["modifier"] == "selective":
        (budget,) = attrs["modifier_parameters"] or (0.0,)
        chosen = np.where(visible[:, :1], np.maximum(scores[:, :1], 0), 0)
        keys = np.arange(scores.shape[3])
        chosen = np.where((keys == 0) | (keys == positions), 0, chosen)
        passed = np.cumsum(chosen, axis=2) - chosen
        if budget > 0:
            visible = visible & (passed <= budget)
        return scores - passed, visible
    if attrs["modifier"] == "threshold" and gates is not None:
        visible = visible & (scores > 0)
        after: Array = np.flip(np.cumsum(np.flip(visible, 3), axis=3), 3) - visible
        return scores + gates[..., None] * after.astype(scores.dtype), visible
    return scores, visible


def weights_of(
    attrs: Mapping[str, Any],
    scores: Array,
    visible: Array,
    sinks: Array | None = None,
    alpha: Array | None = None,
) -> Array:
    """Returns the weights [B, H, S, T] of modified scores.

    Args:
        attrs: Attributes of `attention`.
        scores: [B, H, S, T], finite.
        visible: bool [B, H, S, T].
        sinks: [H], a further score per head that takes weight but has no value.
        alpha: [H], in place of entmax's parameter.
    """
    normalizer = NORMALIZERS[attrs["normalizer"]]
    parameters = normalizer.read(attrs["normalizer_parameters"])
    keys = np.sum(visible, axis=-1, keepdims=True).astype(scores.dtype)
    shown = visible
    if sinks is not None and normalizer.name not in OF_SOFTMAX:
        column = (*scores.shape[:3], 1)
        own = np.broadcast_to(sinks.reshape(1, -1, 1, 1), column)
        scores = np.concatenate([scores, own.astype(scores.dtype)], axis=3)
        shown = np.concatenate([visible, np.ones(column, bool)], axis=3)
    made = _MEANINGS[normalizer.name](scores, shown, keys, parameters, sinks, alpha)
    made = made[..., : visible.shape[3]]
    weights: Array = np.where(visible, made, 0).astype(scores.dtype)
    return weights


def masked_softmax(scores: Array, sinks: Array | None = None) -> Array:
    """Returns the softmax over the last axis; hidden scores are -inf, an empty row gives zeros.

    Args:
        scores: [B, H, S, T].
        sinks: [H], a further score per head that takes weight but has no value.
    """
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    sink = None if sinks is None else sinks.reshape(1, -1, 1, 1)
    if sink is not None:
        top = np.maximum(top, sink)
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(scores - top)
    total = np.sum(weights, axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    result: Array = weights / np.where(total == 0, 1, total)
    return result


_Meaning = Callable[[Array, Array, Array, dict[str, float], "Array | None", "Array | None"], Array]


def _softmax(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    return masked_softmax(np.where(visible, x, -np.inf), sinks)


def _clipped(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    weights = masked_softmax(np.where(visible, x, -np.inf), sinks)
    gamma = p["gamma"] - p["alpha"] / np.maximum(n, 1)
    clipped: Array = np.clip((p["zeta"] - gamma) * weights + gamma, 0, 1)
    return clipped


def _stablemax(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    return _share(np.where(visible, np.maximum(x, 0) + 1 / (1 - np.minimum(x, 0)), 0))


def _softplus(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    weights = _share(np.where(visible, np.logaddexp(x, 0), 0))
    if p["power"] <= 0:
        return weights
    offset = np.where(n <= FEW_KEYS, 0, p["offset"])
    sharp = np.maximum(n * weights - offset, 0)
    top = np.max(sharp, axis=-1, keepdims=True, initial=0)
    return _share((sharp / np.where(top == 0, 1, top)) ** p["power"])  # n^15 would overflow


def _entmax(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    if alpha is None and p["alpha"] == 1:
        return _softmax(x, visible, n, p, None, None)
    a = np.float64(p["alpha"]) if alpha is None else alpha.astype(np.float64).reshape(1, -1, 1, 1)
    z = np.where(visible, x, -np.inf).astype(np.float64) * (a - 1)
    top = np.max(z, axis=-1, keepdims=True, initial=-np.inf)
    z = z - np.where(np.isneginf(top), 0, top)
    low, high = np.full_like(top, -1.0), np.zeros_like(top)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        total = np.sum(np.maximum(z - middle, 0) ** (1 / (a - 1)), axis=-1, keepdims=True)
        low, high = np.where(total >= 1, middle, low), np.where(total >= 1, high, middle)
    return _share(np.maximum(z - low, 0) ** (1 / (a - 1)))


def _top_k(
    x: Array,
    visible: Array,
    n: Array,
    p: dict[str, float],
    sinks: Array | None,
    alpha: Array | None,
) -> Array:
    shown = np.where(visible, x, -np.inf)
    k = min(int(p["k"]), shown.shape[-1])
    if k == 0:
        return np.zeros_like(shown)
    least = np.partition(shown, -k, axis=-1)[..., -k, None]
    return masked_softmax(np.where(shown >= least, shown, -np.inf), sinks)


def _share(x: Array) -> Array:
    total = np.sum(x, axis=-1, keepdims=True)
    result: Array = x / np.where(total == 0, 1, total)
    return result


_MEANINGS: Mapping[str, _Meaning] = {
    "softmax": _softmax,
    "two_pass": _softmax,  # the same number
    "clipped": _clipped,
    "stablemax": _stablemax,
    "softplus": _softplus,
    "entmax": _entmax,
    "top_k": _top_k,
}
