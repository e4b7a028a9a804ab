"""What calibration remembers of inputs of linear layers: a few numbers per channel, streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.calibration.curvature import WIDE
from regraft.passes.protocol import ActivationSource, Context

Array = np.ndarray[Any, Any]

_MAX_ROWS = 4096
"""Rows that are kept for judging ranges; 4096 of 384 channels are 6 MB."""


_ROWS_AT_ONCE = 512
"""Rows of one product: adding K x K numbers for every sample takes longer than all the rest."""

_MOMENTS_AT_ONCE = 1024
"""Positions whose moments with all before them are made by one product."""

_LEAST_BY_CHANCE = 0.1
"""Below it pairs stay as they were seen: the damping of the diagonal does as much."""

_SQUARES_AT_ONCE = 256
"""Positions whose correlations are squared at a time, in f64: 22 MB of 11,008."""


@dataclass(slots=True)
class Statistics:
    """Of one value f32[..., K], over all rows of all samples.

    Attributes:
        low: f32[K], least.
        high: f32[K], largest.
        square: f64[K], sum of squares.
        total: f64[K], sum.
        rows: How many rows were seen.
        moments: f64[K, K], sum of x xᵀ, f32 of wide values; None where nobody asked for it.
        kept: Rows spread evenly over what was seen.
    """

    low: Array
    high: Array
    square: Array
    total: Array
    rows: int = 0
    moments: Array | None = None
    kept: list[Array] = field(default_factory=list)
    _stride: int = 1
    _num_kept: int = 0
    _pending: list[Array] = field(default_factory=list)

    @staticmethod
    def empty(size: int, *, with_moments: bool) -> Statistics:
        """Returns statistics of nothing."""
        return Statistics(
            np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32),
            np.zeros(size), np.zeros(size),
            moments=np.zeros((size, size), np.float64 if size <= WIDE else np.float32)
            if with_moments else None,
        )  # fmt: skip

    @property
    def top(self) -> Array:
        """Largest absolute value, f32[K]."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def is_silent(self) -> bool:
        """Whether nothing but 0 was seen, or no row at all."""
        return self.rows == 0 or not self.top.any()

    @property
    def mean_square(self) -> Array:
        """f64[K]."""
        return self.square / max(self.rows, 1)

    @property
    def mean(self) -> Array:
        """f64[K]."""
        return self.total / max(self.rows, 1)

    @property
    def spread(self) -> Array:
        """[K, K], second moments about the mean, for errors whose mean a bias takes back.

        Of few rows the mean is uncertain, and a part of it stays in.
        """
        if self.moments is None:
            raise AssertionError("second moments were not gathered")
        return self._about_mean(self.moments.copy())

    def take_spread(self) -> Array:
        """Returns the spread in the memory of the moments, which are gone then."""
        if self.moments is None:
            raise AssertionError("second moments were not gathered")
        moments, self.moments = self.moments, None
        return self._about_mean(moments)

    def _about_mean(self, moments: Array) -> Array:
        """Takes the mean out of moments, and what few rows say of pairs by chance, in place."""
        certain = self.rows / (self.rows + len(self.total))
        weighted = certain * max(self.rows, 1) * self.mean
        for first in range(0, len(moments), _MOMENTS_AT_ONCE):
            run = slice(first, first + _MOMENTS_AT_ONCE)
            moments[run] -= np.outer(weighted[run], self.mean)
        _shrink(moments, self.rows)
        return moments

    @staticmethod
    def joined(items: Sequence[Statistics]) -> Statistics:
        """Returns the statistics of several values of one size together."""
        if len(items) == 1:
            return items[0]
        found = Statistics.empty(items[0].low.size, with_moments=False)
        rows = [each.sample() for each in items]
        for each in items:
            np.minimum(found.low, each.low, out=found.low)
            np.maximum(found.high, each.high, out=found.high)
            found.square += each.square
            found.total += each.total
            found.rows += each.rows
            if each.moments is not None:
                moments = each.moments
                found.moments = moments if found.moments is None else found.moments + moments
        stride = -(-sum(map(len, rows)) // _MAX_ROWS)
        found.kept = [np.concatenate(rows)[:: max(stride, 1)].copy()]
        return found

    def sample(self) -> Array:
        """Returns rows that were seen, f32[R, K]."""
        return np.concatenate(self.kept) if self.kept else np.zeros((0, self.low.size), np.float32)

    def flush(self) -> None:
        """Takes the rows that still wait into the moments."""
        if self.moments is not None and self._pending:
            rows = np.concatenate(self._pending)
            for first in range(0, rows.shape[1], _MOMENTS_AT_ONCE):
                stop = min(first + _MOMENTS_AT_ONCE, rows.shape[1])
                with np.errstate(over="ignore"):  # what reads the moments refuses infinite ones
                    part = rows[:, first:stop].T @ rows[:, :stop]
                self.moments[first:stop, :stop] += part
                self.moments[:first, first:stop] += part[:, :first].T
        self._pending = []

    def update(self, x: Array) -> None:
        """Takes in rows f32[R, K]."""
        np.minimum(self.low, x.min(0, initial=np.inf), out=self.low)
        np.maximum(self.high, x.max(0, initial=-np.inf), out=self.high)
        self.square += np.einsum("rk,rk->k", x, x, dtype=np.float64)
        self.total += x.sum(0, dtype=np.float64)
        if self.moments is not None:
            self._pending.append(x.copy())
            if sum(map(len, self._pending)) >= _ROWS_AT_ONCE:
                self.flush()
        offset = -self.rows % self._stride
        self.rows += x.shape[0]
        picked = x[offset :: self._stride].copy()
        self.kept.append(picked)
        self._num_kept += picked.shape[0]
        if self._num_kept > _MAX_ROWS:  # every other row goes, and from now on every other is kept
            rows = np.concatenate(self.kept)[::2].copy()
            self.kept, self._num_kept, self._stride = [rows], rows.shape[0], 2 * self._stride


def _shrink(moments: Array, rows: int) -> None:
    """Makes moments of pairs smaller by what so many rows are expected to show by chance, in place.

    By the oracle approximating shrinkage of Chen et al., 2010, eq. 23, of correlations: of a few
    rows of independent channels nearly all goes, of thousands of rows of an encoder nothing.
    """
    size = len(moments)
    diagonal = np.einsum("kk->k", moments).astype(np.float64)
    if not np.isfinite(diagonal).all():  # what reads the moments refuses them
        return
    inverse = np.where(diagonal > 0, 1 / np.maximum(diagonal, np.finfo(np.float64).tiny), 0)
    squares = 0.0  # of all correlations
    for first in range(0, size, _SQUARES_AT_ONCE):
        run = slice(first, first + _SQUARES_AT_ONCE)
        part = np.square(moments[run], dtype=np.float64)
        squares += float(inverse[run] @ (part @ inverse))
    count = int((inverse > 0).sum())
    beyond = squares - count
    if count < 2 or rows < 1 or not np.isfinite(squares) or beyond <= 0:
        return
    certain = 1 - 2 / count
    part_by_chance = (certain * squares + count**2) / ((rows + certain) * beyond)
    if part_by_chance < _LEAST_BY_CHANCE:
        return
    moments *= moments.dtype.type(1 - min(part_by_chance, 1.0))
    np.einsum("kk->k", moments)[:] = diagonal


def gather_statistics(
    module: Module,
    values: Sequence[Value],
    ctx: Context,
    moments: Sequence[Value] = (),
    who: str = "pass `quantize`",
) -> dict[Value, Statistics]:
    """Runs the samples and returns the statistics of each value.

    Args:
        module: The module.
        values: Values of its main graph, f32[..., K].
        ctx: Gives samples and a source of activations.
        moments: Those of `values` whose second moments are wanted.
        who: What asks, for errors.

    Raises:
        UsageError: Without samples or a source, or when a value holds NaN or Inf.
    """
    source = check_samples(ctx, who)
    wanted = list(dict.fromkeys(values))
    return gathered(source.activations(module, wanted, ctx.samples), moments)


def check_samples(ctx: Context, who: str = "pass `quantize`") -> ActivationSource:
    """Returns what runs the samples.

    Raises:
        UsageError: Without samples or a source.
    """
    if not ctx.samples:
        raise UsageError(
            f"{who} needs samples, and there are none",
            hint="give inputs with --calibrate, or choose a method that needs none",
        )
    if ctx.activations is None:
        raise UsageError(f"{who} needs values inside the module, and there is no source")
    return ctx.activations


def gathered(
    items: Iterable[Mapping[Value, Array]], moments: Sequence[Value] | None = None
) -> dict[Value, Statistics]:
    """Returns the statistics of values, sample by sample.

    Args:
        items: The content of every value, one mapping per sample.
        moments: The values whose second moments are wanted; default: all.

    Raises:
        UsageError: When a value holds NaN or Inf.
    """
    want_moments = None if moments is None else set(moments)
    found: dict[Value, Statistics] = {}
    for item in items:
        for value, array in item.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
            if not np.isfinite(rows).all():
                raise UsageError(
                    f"`{value.name}` holds NaN or Inf on a sample: no range holds it",
                    hint="find the sample with `regraft compare`, or keep the layer in float",
                )
            if value not in found:
                wants = want_moments is None or value in want_moments
                found[value] = Statistics.empty(rows.shape[1], with_moments=wants)
            found[value].update(rows)
    for stats in found.values():
        stats.flush()
    return found
