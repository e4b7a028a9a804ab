"""Routers of experts that are parts of one feed-forward block: from weights, or from samples.

- `mean`: the mean of the rows of an expert's first layer (avg-k);
- `centroid`: centres of k-means over what the block reads, each given to an expert that is strong
  there (LLaMA-MoE v2);
- `competition`: experts compete by the norm of what they give; a linear layer is fitted to who
  wins (CompeteSMoE);
- `representative`: the strength of the one hidden channel of each expert that is nearest to its
  centre (CMoE).

Source: Liu et al., Towards A Unified View of Sparse Feed-Forward Network, 2023, section 5; Qu et
al., LLaMA-MoE v2, 2024, section 3.1; Pham et al., CompeteSMoE, 2024, section 3; Pei et al., CMoE,
2025, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.experts.dense import Dense
from regraft.passes.experts.evidence import Evidence, responses
from regraft.passes.experts.parts import Parts, assigned, balanced, equal_sizes

Array = np.ndarray[Any, Any]

_RIDGE = 1e-3
"""Of the fit, over the mean square of what it reads."""
_STEPS = 60
"""Of the fit: what it chooses hardly changes after half of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """Scores of experts: `x rows' + bias`, or the strength of one hidden channel of each.

    Without either, the scores are computed elsewhere.

    Args:
        rows: f64[E, D], of a linear router.
        bias: f64[E], or None.
        channels: i64[E], hidden channels of the block, of a router that has no rows.
        agreement: Fraction of the experts with the strongest responses that it chooses on the
            samples, None where it was not measured.
    """

    rows: Array | None = None
    bias: Array | None = None
    channels: Array | None = None
    agreement: float | None = None


def zero_router(parts: Parts, dense: Dense) -> Router:
    """Returns a router to which all experts are equal: the first ones are chosen."""
    return Router(np.zeros((len(parts.experts), dense.up.shape[1])))


def random_router(parts: Parts, dense: Dense, deviation: float, rng: np.random.Generator) -> Router:
    """Returns a router of normal rows."""
    return Router(rng.normal(0, deviation, (len(parts.experts), dense.up.shape[1])))


def mean_router(parts: Parts, dense: Dense) -> Router:
    """Returns the mean row of every expert's first layer, that of the gate where there is one."""
    keys = dense.up if dense.gate is None else dense.gate
    return Router(np.stack([keys[own].astype(np.float64).mean(0) for own in parts.experts]))


def centroid_router(
    parts: Parts, dense: Dense, evidence: Evidence, rng: np.random.Generator
) -> Router:
    """Returns centres of what the block reads, each for an expert that responds to it."""
    count = len(parts.experts)
    x = evidence.x.astype(np.float64)
    first = x[rng.permutation(len(x))[:count]]
    owner = balanced(x, first, equal_sizes(len(x), count))
    strength = responses(evidence.hidden, dense.down, parts.experts)
    strength = strength / strength.mean(0)
    # [centre, expert]
    found = np.stack([strength[owner == centre].mean(0) for centre in range(count)])
    expert_of = assigned(-found, [1] * count)
    rows, bias = np.zeros((count, x.shape[1])), np.zeros(count)
    for centre, expert in enumerate(expert_of):
        middle = x[owner == centre].mean(0)
        # the nearest centre: |x - c|^2 is least where x c - |c|^2 / 2 is largest
        rows[expert], bias[expert] = middle, -np.square(middle).sum() / 2
    return Router(rows, bias)


def clustered_rows(x: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns rows f64[E, D] and biases f64[E] of a router whose experts get like tokens, equally.

    Scores are those of the nearest of `count` centres of balanced k-means, scaled so that experts
    differ by about one.

    Args:
        x: f[N, D], what is routed.
        count: Experts.
        rng: Draws the first centres.
    """
    wide = x.astype(np.float64)
    first = wide[rng.permutation(len(wide))[:count]]
    owner = balanced(wide, first, equal_sizes(len(wide), count))
    rows = np.stack([wide[owner == centre].mean(0) for centre in range(count)])
    bias = -np.square(rows).sum(1) / 2
    spread = (wide @ rows.T + bias).std(1).mean() or 1.0
    return rows / spread, bias / spread


def ridge_classifier(x: Array, labels: Array, count: int) -> tuple[Array, Array, float]:
    """Returns weights f64[D, C] and bias f64[C] that tell classes, and how often they are right.

    Args:
        x: f[N, D].
        labels: i64[N].
        count: Classes C.
    """
    wide = x.astype(np.float64)
    middle, scale = wide.mean(0), wide.std() or 1.0
    design = np.concatenate([(wide - middle) / scale, np.ones((len(wide), 1))], 1)
    fitted = _logistic(design, np.eye(count)[labels])
    weights = fitted[:-1] / scale
    bias = fitted[-1] - middle @ weights
    found = (wide @ weights + bias).argmax(1)
    return weights, bias, float((found == labels).mean())


def competition_router(
    parts: Parts, dense: Dense, evidence: Evidence, top_k: int, *, centred: bool
) -> Router:
    """Returns a linear layer that tells which experts win: logistic, one expert at a time."""
    hidden = evidence.hidden - evidence.hidden.mean(0) if centred else evidence.hidden
    won = winners(responses(hidden, dense.down, parts.experts), top_k).astype(np.float64)
    x = evidence.x.astype(np.float64)
    middle, scale = x.mean(0), x.std() or 1.0
    design = np.concatenate([(x - middle) / scale, np.ones((len(x), 1))], 1)
    fitted = _logistic(design, won).T
    rows = fitted[:, :-1] / scale
    bias = fitted[:, -1] - rows @ middle
    scores = x @ rows.T + bias
    return Router(rows, bias, agreement=agreement(scores, won > 0, top_k))


def representative_router(
    parts: Parts, features: Array, dense: Dense, evidence: Evidence, top_k: int, *, centred: bool
) -> Router:
    """Returns the channel of every expert whose feature is nearest to the mean of the expert's.

    Args:
        parts: The channels of the experts.
        features: f[F, K], what channels were compared by.
        dense: The block.
        evidence: What it computes on samples.
        top_k: Experts of a token.
        centred: Whether what an expert gives on mean is made up for.
    """
    found = []
    for own in parts.experts:
        rows = features[own].astype(np.float64)
        found.append(own[np.square(rows - rows.mean(0)).sum(1).argmin()])
    channels = np.array(found)
    hidden = evidence.hidden - evidence.hidden.mean(0) if centred else evidence.hidden
    won = winners(responses(hidden, dense.down, parts.experts), top_k)
    scores = np.abs(evidence.hidden[:, channels])
    return Router(channels=channels, agreement=agreement(scores, won, top_k))


def winners(strength: Array, top_k: int) -> Array:
    """Returns who is among the `top_k` strongest, bool[N, E]; equal: the lower expert."""
    order = np.argsort(-strength, axis=1, kind="stable")[:, :top_k]
    found = np.zeros(strength.shape, bool)
    np.put_along_axis(found, order, True, 1)
    return found


def agreement(scores: Array, won: Array, top_k: int) -> float:
    """Returns the fraction of the winners that scores choose."""
    return float((winners(scores, top_k) & won).sum() / max(1, won.sum()))


def _logistic(design: Array, labels: Array) -> Array:
    """Returns the weights of one logistic regression per column of labels, with a little decay.

    The curvature of all is bounded by a quarter of the design's, which is factored once (Böhning,
    Multinomial Logistic Regression Algorithm, 1992); extrapolated steps (Nesterov) make up for
    how loose the bound is.
    """
    decay = np.full(design.shape[1], _RIDGE * len(design))
    decay[-1] = 1e-9 * len(design)
    curve = np.linalg.inv(design.T @ design / 4 + np.diag(decay))
    found = np.zeros((design.shape[1], labels.shape[1]))
    ahead, momentum = found, 1.0
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ ahead, -30, 30)))
        after = ahead - curve @ (design.T @ (p - labels) + decay[:, None] * ahead)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / following * (after - found)
        found, momentum = after, following
    return found


def reconstruction_error(
    hidden: Array, down: Array, experts: Sequence[Array], taken: Array, *, centred: bool
) -> float:
    """Returns how far the chosen experts' sum is from that of all, relative to that of all.

    Args:
        hidden: f[N, F].
        down: f[O, F].
        experts: Their channels.
        taken: bool[N, E].
        centred: Whether what an expert gives on mean is made up for.
    """
    rows = (hidden - hidden.mean(0) if centred else hidden).astype(np.float64)
    missing = np.zeros((len(hidden), len(down)))
    whole = np.zeros_like(missing)
    for expert, channels in enumerate(experts):
        each = rows[:, channels] @ down[:, channels].astype(np.float64).T
        missing += np.where(taken[:, expert, None], 0, each)
        whole += each
    return float(np.linalg.norm(missing) / np.linalg.norm(whole))
