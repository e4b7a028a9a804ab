"""Which normalization a cone computes: kind, epsilon, gain and shift, solved from probes.

The hypothesis is `y = G * N(x) + B`, where N centres and scales (layer norm) or only scales (RMS
norm) over the reduced axes. Rows of large amplitude give G, a row of zeros gives B, rows of small
amplitude give epsilon, and every row must agree. Which constants G and B are follows from the
random contents that the constants take during the probing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.passes.analysis.cones import MEAN_LIKE, REDUCTIONS, Cone, normalized_axes
from regraft.passes.analysis.probing import constant_error, evaluate_cone, snap

Array = np.ndarray[Any, Any]

_FEW = 13
"""Positions that stand for any number of them where only means are taken; prime, so that no size
in the cone equals it by accident."""

_MAX_POSITIONS = 1 << 16
_AMPLITUDES = (1e4, 1e4, 1e4, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12)
_NUM_LARGE = 3
_ERROR = 1e-6
"""Relative: factors such as 1/d are rounded to f32, epsilon is."""


@dataclass(frozen=True, slots=True)
class Term:
    """`factor * product(vectors)`: what a gain or a shift is made of.

    Args:
        factor: A number.
        vectors: Positions in `cone.vectors`.
    """

    factor: float
    vectors: tuple[int, ...] = ()

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing as a gain."""
        return self.factor == 1 and not self.vectors

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing as a shift."""
        return self.factor == 0


@dataclass(frozen=True, slots=True)
class NormFit:
    """A normalization that a cone computes exactly.

    Args:
        kind: `layer_norm`, `rms_norm` or `l2_norm` (no mean over the squares).
        axes: Normalized axes, counted from the end.
        epsilon: Added to the variance or the mean square (l2_norm: to the sum of squares).
        gain: What the normal values are multiplied by.
        shift: What is added.
    """

    kind: str
    axes: tuple[int, ...]
    epsilon: float
    gain: Term
    shift: Term


@dataclass(frozen=True, slots=True)
class NearNorm:
    """A cone that normalizes, but as no operator does; the reason says how it differs."""

    reason: str


def reduced(cone: Cone) -> tuple[int, ...] | None:
    """Returns the axes over which a cone takes statistics, None when there are none or unknown."""
    axes: set[int] = set()
    for node in cone.nodes:
        if node.op in REDUCTIONS:
            own = normalized_axes(node)
            if own is None:
                return None
            axes.update(own)
    return tuple(sorted(axes)) or None


def fit(cone: Cone) -> NormFit | NearNorm | None:
    """Returns which normalization a cone computes, how it nearly is one, or None."""
    axes = reduced(cone)
    x = cone.x.shape
    if axes is None or x is None:
        return None
    only_means = all(node.op in MEAN_LIKE or node.op not in REDUCTIONS for node in cone.nodes)
    sizes: dict[int, int] = {}
    for axis in axes:
        size = x[axis]
        if only_means:
            sizes[axis] = _FEW if size != 1 else 1
        elif isinstance(size, int):
            sizes[axis] = size
        else:
            return None
    count = math.prod(sizes.values())
    if not 1 < count <= _MAX_POSITIONS:
        return None
    vectors = _vectors(cone, sizes)
    if vectors is None:
        return None
    return _Probe(cone, axes, sizes, vectors).fit()


def _vectors(cone: Cone, sizes: dict[int, int]) -> list[Array] | None:
    """Returns a random content for each vector, None when one varies along other axes."""
    rng = np.random.default_rng(7)
    contents = []
    for value in cone.vectors:
        if value.shape is None:
            return None
        rank = len(value.shape)
        shape = []
        for idx, size in enumerate(value.shape):
            axis = idx - rank
            if size != 1 and axis not in sizes:
                return None
            shape.append(1 if size == 1 else sizes[axis])
        contents.append(rng.uniform(0.5, 2.0, shape))
    return contents


class _Probe:
    """One cone under test; rows are flattened over the normalized axes."""

    def __init__(
        self, cone: Cone, axes: tuple[int, ...], sizes: dict[int, int], vectors: list[Array]
    ) -> None:
        self.cone = cone
        self.axes = axes
        self.rank = len(cone.x.shape or ())
        self.inner = tuple(sizes[axis] for axis in axes)
        self.vectors = vectors
        rng = np.random.default_rng(3)
        count = math.prod(self.inner)
        z = rng.standard_normal((len(_AMPLITUDES), count)) + 0.7
        scaled = z * np.array(_AMPLITUDES)[:, None]
        self.rows = np.concatenate([np.zeros((1, count)), scaled, np.full((1, count), 3.0)])
        # constants of the shape of a row, to be compared with gains and shifts
        full = np.zeros([sizes.get(i - self.rank, 1) for i in range(self.rank)])
        self.flat = [np.broadcast_to(v, full.shape).reshape(-1) for v in vectors]

    def evaluate(self) -> Array:
        """Returns what the cone computes on every row."""
        shape = [1] * self.rank
        for axis, size in zip(self.axes, self.inner, strict=True):
            shape[axis] = size
        contents = dict(zip(self.cone.vectors, self.vectors, strict=True))
        batch = next((i for i in range(self.rank) if i - self.rank not in self.axes), None)
        if batch is None:
            rows = [evaluate_cone(self.cone, row.reshape(shape), contents) for row in self.rows]
            return np.stack([row.reshape(-1) for row in rows])
        shape[batch] = len(self.rows)
        # the row axis stands where the batch axis is
        x = np.moveaxis(self.rows.reshape(len(self.rows), *self.inner), 0, 0)
        x = x.reshape([len(self.rows), *[s for i, s in enumerate(shape) if i != batch]])
        try:
            y = evaluate_cone(self.cone, np.moveaxis(x, 0, batch), contents)
        except ValueError:  # at these sizes its values do not broadcast: they mix rows
            return np.full_like(self.rows, np.nan)
        if y.shape != tuple(shape):
            return np.full_like(self.rows, np.nan)
        return np.moveaxis(y, batch, 0).reshape(self.rows.shape)

    def fit(self) -> NormFit | NearNorm | None:
        """Returns which normalization it is."""
        y = self.evaluate()
        large = slice(1, 1 + _NUM_LARGE)
        if not np.isfinite(y[large]).all():
            return None
        shift = y[0] if np.isfinite(y[0]).all() else np.zeros_like(y[0])
        near: NearNorm | None = None
        for kind, power in (("layer_norm", _variance), ("rms_norm", _mean_square)):
            centred = (
                self.rows - self.rows.mean(1, keepdims=True) if kind == "layer_norm" else self.rows
            )
            powers = power(self.rows)
            with np.errstate(all="ignore"):
                normal = centred / np.sqrt(powers)[:, None]
            gain = _ratio(y[large] - shift, normal[large])
            wanted = gain * normal[large] + shift
            scale = float(np.abs(wanted).max())
            if not scale or np.abs(wanted - y[large]).max() > _ERROR * scale:
                continue
            found = self._with_epsilon(kind, y, gain, shift, centred, powers)
            if isinstance(found, NormFit):
                return found
            near = near or found
        return near

    def _with_epsilon(
        self, kind: str, y: Array, gain: Array, shift: Array, centred: Array, powers: Array
    ) -> NormFit | NearNorm | None:
        probes = slice(1, 1 + len(_AMPLITUDES))
        weights = gain * centred[probes] / np.sqrt(powers[probes])[:, None]
        damping = ((y[probes] - shift) * weights).sum(1) / (weights * weights).sum(1)
        power = powers[probes]
        epsilon = self._epsilon(damping, power)
        with np.errstate(all="ignore"):
            wanted = gain * centred / np.sqrt(powers + epsilon)[:, None] + shift
        scale = float(np.abs(wanted[probes]).max())
        error = max(_ERROR, constant_error(self.cone))
        checked = np.isfinite(wanted) if epsilon == 0 else np.full(wanted.shape, True)
        difference = np.abs(wanted - y)[checked]
        if not (difference <= error * scale).all():
            return _near(kind, damping, power)
        gain_term = self._term(gain, is_gain=True)
        shift_term = self._term(shift, is_gain=False)
        if gain_term is None or shift_term is None:
            return NearNorm(
                f"the {'gain' if gain_term is None else 'shift'} is no product of constants"
            )
        return self._named(kind, epsilon, gain_term, shift_term)

    def _named(self, kind: str, epsilon: float, gain: Term, shift: Term) -> NormFit:
        count = math.prod(self.inner)
        if kind == "rms_norm" and shift.is_zero and not gain.vectors:
            # x / sqrt(sum(x^2)) = x / sqrt(mean(x^2)) / sqrt(d)
            root = gain.factor * math.sqrt(count)
            if abs(root - 1) < _ERROR and gain.factor != 1:
                return NormFit("l2_norm", self.axes, epsilon * count, Term(1.0), shift)
        return NormFit(kind, self.axes, epsilon, gain, shift)

    def _epsilon(self, damping: Array, power: Array) -> float:
        """Solves `damping = sqrt(power / (power + epsilon))` where it is told best."""
        usable = np.isfinite(damping) & (damping > 0.02) & (damping < 0.98)
        if not usable.any():
            return 0.0
        idx = np.flatnonzero(usable)[np.argmin(np.abs(damping[usable] - 0.6))]
        return snap(float(power[idx] * (1 / damping[idx] ** 2 - 1)), self.cone)

    def _term(self, content: Array, *, is_gain: bool) -> Term | None:
        """Returns the product of vectors that a content is, None when it is none."""
        top = float(np.abs(content).max())
        if not is_gain and top <= _ERROR:
            return Term(0.0)
        for size in range(min(len(self.flat), 3) + 1):
            for chosen in itertools.combinations(range(len(self.flat)), size):
                product = np.ones_like(content)
                for idx in chosen:
                    product = product * self.flat[idx]
                factor = float((content * product).sum() / (product * product).sum())
                if np.abs(content - factor * product).max() <= _ERROR * top:
                    return Term(1.0 if abs(factor - 1) <= _ERROR else factor, chosen)
        return None


def _ratio(y: Array, normal: Array) -> Array:
    """Returns the least-squares factor per position over the rows."""
    ratio: Array = (y * normal).sum(0) / (normal * normal).sum(0)
    return ratio


def _variance(rows: Array) -> Array:
    return np.asarray(rows.var(1))


def _mean_square(rows: Array) -> Array:
    return np.asarray(np.square(rows).mean(1))


def _near(kind: str, damping: Sequence[float] | Array, power: Array) -> NearNorm:
    """Says how epsilon enters when it is not added to the power."""
    damping = np.asarray(damping)
    deviation = np.sqrt(power)
    usable = (damping > 1e-7) & (damping < 0.999)
    what = "variance" if kind == "layer_norm" else "mean square"
    if usable.sum() > 1:
        added = (deviation * (1 / damping - 1))[usable]
        if np.ptp(added) <= 1e-3 * added.mean():
            return NearNorm(f"epsilon {added.mean():.3g} is added to the root of the {what}")
        least = (deviation / damping)[usable]
        if np.ptp(least) <= 1e-3 * least.mean():
            return NearNorm(f"the root of the {what} is at least {least.mean():.3g}")
    return NearNorm(f"it differs from {kind} for small inputs")
