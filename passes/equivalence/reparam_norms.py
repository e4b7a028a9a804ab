"""The pass `reparam-norms`: what norms give gets one range and one zero point for all channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import norm
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.equivalence.learned_clips import learned_ends
from regraft.passes.equivalence.scaling import Refused, apply_plan, plan_factor
from regraft.passes.equivalence.shifting import apply_shift, plan_shift
from regraft.passes.equivalence.smooth import readers_of, sampled
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

Array = np.ndarray[Any, Any]

_PERCENTILES = (1.0, 0.99999, 0.9999, 0.999)
_CLIPS = np.linspace(1.0, 0.5, 11)
_TINY = 1e-12

Common = Literal["mean", "median"]
Clip = Literal["none", "percentile", "search", "learned"]


@dataclass(frozen=True, slots=True)
class ReparamNorms:
    """Makes one range of all channels of what a norm gives, so that low bits hold it.

    ## What it does
    Channels after a norm have ranges and centres of their own. It finds a scale and a zero point
    for every channel on samples, takes the mean (or the median) of the scales as the common one,
    and moves what is left into the norm and its readers: gain and bias are divided by
    r1 = s / common after the bias took s * r2 (r2 = z - common zero point), the rows of the
    readers' weights are multiplied by r1 and their biases give the shift back.

    ## When it applies
    To layer norms whose every reader is a linear layer with a constant weight: norms before a
    layer. Where the result is the residual stream too, or an output, it is left alone, with the
    reason. An RMS norm has no bias: it gets the factors alone.

    ## Example
    ```
    %n = layer_norm(%x, %gain, %bias)
    %y = add(matmul(%n, %w), %b)
    ```
    becomes the same with other constants; `%n` then has one range.

    ## Exactness
    Exact.

    ## References
    Li et al., RepQ-ViT, 2023, eq. 9-12; Li et al., RepQuant, 2024 (`clip=learned`); Yang et al.,
    DopQ-ViT, 2024 (`common=median`).

    Args:
        bits: Of the codes that the ranges are for.
        clip: How ranges are cut: `none`, `percentile` (the best of four for the whole value), or
            `search` per channel and per side, `learned` by gradients from there on.
        common: Which common scale: `mean`, or `median`, which few large channels do not move.
    """

    name: ClassVar[str] = "reparam-norms"
    contract: ClassVar[Contract] = Exact()

    bits: int = 8
    clip: Clip = "percentile"
    common: Common = "mean"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates and folds.

        Raises:
            UsageError: For other numbers of bits than 2 to 8, or without samples.
        """
        if not 2 <= self.bits <= 8:
            raise UsageError(f"pass `reparam-norms`, option `bits`: {self.bits} is not in 2 to 8")
        values = [x for x in readers_of(module) if _is_norm(x)]
        found = gather_statistics(module, values, sampled(module, ctx, self.name)) if values else {}
        coupling = Coupling(module)
        skipped: list[Skip] = []
        folded = 0
        for x in values:
            refused = self._fold(module, coupling, x, found[x])
            if refused is None:
                folded += 1
            else:
                skipped.append(Skip(x.name or "", f"`{refused.node}`: {refused.reason}"))
        return PassResult(bool(folded), {"norms": folded}, tuple(skipped))

    def _fold(
        self, module: Module, coupling: Coupling, x: Value, stats: Statistics
    ) -> Refused | None:
        has_bias = x.producer is not None and x.producer.op is norm.layer_norm
        scale, zero = channel_ranges(stats, self.bits, self.clip, symmetric=not has_bias)
        kept, common_zero = common_range(scale, zero, self.common)
        ratio = scale / kept
        plans = plan_factor(coupling, x, (x.rank or 1) - 1, 1 / ratio)
        if isinstance(plans, Refused):
            return plans
        if has_bias:
            shift = plan_shift(coupling, x)
            if isinstance(shift, Refused):
                return shift
            apply_shift(shift, scale * (zero - common_zero))
            coupling = Coupling(module)  # the biases are new
            plans = plan_factor(coupling, x, (x.rank or 1) - 1, 1 / ratio)
            if isinstance(plans, Refused):
                raise AssertionError("a shift does not change what a factor passes through")
        for plan in plans:
            apply_plan(coupling, plan)
        return None


def _is_norm(value: Value) -> bool:
    return value.producer is not None and value.producer.op in (norm.layer_norm, norm.rms_norm)


def channel_ranges(
    stats: Statistics, bits: int, clip: Clip, *, symmetric: bool = False
) -> tuple[Array, Array]:
    """Returns scale and zero point of every channel, f64[K]; zero points are not rounded.

    Args:
        stats: Of the value.
        bits: Of the codes, 0 to 2 ** bits - 1.
        clip: How ranges are cut.
        symmetric: Whether 0 is the middle of every range.
    """
    low, high = stats.low.astype(np.float64), stats.high.astype(np.float64)
    rows = stats.sample().astype(np.float64)
    if clip == "percentile" and len(rows):
        candidates = [
            (np.quantile(rows, 1 - share, 0), np.quantile(rows, share, 0))
            for share in _PERCENTILES[1:]
        ]
        candidates.insert(0, (low, high))
        low, high = min(candidates, key=lambda pair: _loss(rows, pair, bits).sum())
    if clip in ("search", "learned") and len(rows):
        low, high = _searched(rows, low, high, bits)
    if clip == "learned" and len(rows):
        low, high = learned_ends(rows, low, high, bits)
    if symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    scale = np.maximum(high - low, _TINY) / (2**bits - 1)
    return scale, -low / scale


def common_range(scale: Array, zero: Array, common: Common) -> tuple[float, float]:
    """Returns the scale and the zero point that all channels get."""
    middle = np.mean if common == "mean" else np.median
    return float(middle(scale)), float(middle(zero))


def _loss(rows: Array, ends: tuple[Array, Array], bits: int) -> Array:
    """Returns the squared error of every channel in its range, f64[K]."""
    low, high = ends
    scale = np.maximum(high - low, _TINY) / (2**bits - 1)
    codes = np.clip(np.rint((rows - low) / scale), 0, 2**bits - 1)
    loss: Array = np.square(codes * scale + low - rows).sum(0)
    return loss


def _searched(rows: Array, low: Array, high: Array, bits: int) -> tuple[Array, Array]:
    """Returns the range of least error per channel, both ends shrunk in turn."""
    for _ in range(2):
        for is_high in (True, False):
            best = np.full(len(low), np.inf)
            ends = high if is_high else low
            kept = ends.copy()
            for share in _CLIPS:
                middle = (low + high) / 2
                moved = middle + (ends - middle) * (2 * share - 1)
                pair = (low, moved) if is_high else (moved, high)
                loss = _loss(rows, pair, bits)
                kept = np.where(loss < best, moved, kept)
                best = np.minimum(loss, best)
            if is_high:
                high = kept
            else:
                low = kept
    return low, high
