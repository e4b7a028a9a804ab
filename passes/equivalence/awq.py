"""The pass `awq`: weights that read large channels are made larger before they are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.equivalence.scaling import Refused, apply_plan, plan_factor
from regraft.passes.equivalence.smooth import readers_of, sampled
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip
from regraft.passes.quantization.encoding import grid_of, grouped, round_to
from regraft.passes.quantization.formats import Format, format_of
from regraft.passes.quantization.sites import Linear

Array = np.ndarray[Any, Any]

_RATIOS = np.arange(20) / 20
_LEAST = 1e-4
_MAX_ROWS = 512


@dataclass(frozen=True, slots=True)
class Awq:
    """Chooses a factor per input channel so that rounded weights lose least, and folds it.

    ## What it does
    Rounding errors of weights that read large channels count most. For every value that linear
    layers read it tries factors `mean|x| ** r / mean|w| ** (1 - r)`, r from 0 to 0.95, rounds the
    weights as `weights` and `group` say, and keeps the r with the least error of what the layers
    give on the samples. What makes the value is divided by the factor, the weights are multiplied.
    Weights are not rounded: `quantize` does it after.

    ## When it applies
    Where a factor passes from what makes the value to the readers alone, as for `smooth`. Needs
    samples.

    ## Example
    ```
    %n = rms_norm(%x, %gain)
    %y = matmul(%n, %w)
    ```
    becomes the same with `%gain` divided and the rows of `%w` multiplied.

    ## Exactness
    Exact.

    ## References
    Lin et al., AWQ, 2023, eq. 5.

    Args:
        weights: Format that the weights will have.
        group: Inputs that will share a scale.
    """

    name: ClassVar[str] = "awq"
    contract: ClassVar[Contract] = Exact()

    weights: str = "uint4"
    group: int = 32

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates, searches, folds."""
        fmt = format_of(self.weights, "weights")
        readers = readers_of(module)
        if not readers:
            return PassResult(False, {"folded": 0})
        found = gather_statistics(module, list(readers), sampled(module, ctx, self.name))
        coupling = Coupling(module)
        skipped: list[Skip] = []
        done: set[Value] = set()
        folded = 0
        for x, sites in readers.items():
            if x in done:
                continue
            axis = (x.rank or 1) - 1
            probe = plan_factor(coupling, x, axis, np.ones(sites[0].sizes[0]))
            if isinstance(probe, Refused):
                skipped.append(Skip(x.name or "", f"`{probe.node}`: {probe.reason}"))
                continue
            factor = searched_factor(sites, found[x], fmt, self.group or sites[0].sizes[0])
            if (factor == 1).all():
                continue
            plans = plan_factor(coupling, x, axis, 1 / factor)
            # what passes does not depend on the numbers
            for plan in () if isinstance(plans, Refused) else plans:
                apply_plan(coupling, plan)
                done.update(plan.powers)
            folded += 1
        return PassResult(bool(folded), {"folded": folded}, tuple(skipped))


def searched_factor(sites: list[Linear], stats: Statistics, fmt: Format, group: int) -> Array:
    """Returns what rows of the weights are multiplied by, f64[K]; 1 where nothing gains.

    Args:
        sites: Layers that read one value.
        stats: Of the value.
        fmt: Format of the weights.
        group: Inputs that share a scale.
    """
    rows = stats.sample()[:_MAX_ROWS]
    matrices = [site.matrix() for site in sites]
    # what rounding makes of rows x is x E: its square is the sum over all rows of x x^T
    moments = (rows.T @ rows).astype(np.float64)
    reach = np.maximum(np.abs(rows).mean(0, dtype=np.float64), _LEAST)
    weight = np.maximum(np.mean([_relative_size(each, group) for each in matrices], 0), _LEAST)
    best, least = np.ones(len(reach)), np.inf
    for ratio in _RATIOS:
        factor = np.maximum(reach**ratio / (weight ** (1 - ratio) + _LEAST), _LEAST)
        if ratio == 0:
            factor = np.ones(len(reach))
        factor = factor / np.sqrt(factor.max() * factor.min())
        loss = 0.0
        for matrix in matrices:
            scaled = (matrix * factor[:, None]).astype(np.float32)
            held = round_to(scaled, grid_of(scaled, fmt, group)).decode()
            error = held / factor[:, None] - matrix
            loss += float(np.vdot(error, moments @ error))
        if loss < least:
            best, least = factor, loss
    return best


def _relative_size(matrix: Array, group: int) -> Array:
    """Returns the mean of |w| over the largest of its group, f64[K]."""
    blocks = np.abs(grouped(matrix, group))
    top = np.maximum(blocks.max(1, keepdims=True), 1e-30)
    relative = (blocks / top).reshape(-1, matrix.shape[1])[: len(matrix)]
    return np.asarray(relative.mean(1, dtype=np.float64))
