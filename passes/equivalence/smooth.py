"""The pass `smooth`: large channels are made smaller, and the weights that read them larger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.equivalence.scaling import Refused, apply_plan, plan_factor
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip
from regraft.passes.quantization.sites import Linear, linears

Array = np.ndarray[Any, Any]

_LIMIT = 1e4


@dataclass(frozen=True, slots=True)
class Smooth:
    """Evens out the ranges of the channels that linear layers read.

    ## What it does
    Few channels of a transformer are many times larger than the others, and one range for all of
    them leaves the others few codes. Each channel j of what linear layers read is divided by
    `max|x_j| ** strength / max|w_j| ** (1 - strength)`; what makes it takes that in its weights,
    gain or bias, and the weights that read it are multiplied.

    ## When it applies
    Where a factor passes from what makes the value to the readers alone: after the norms of
    models that normalize before a layer, between the gated product of a feed-forward part and
    its last matrix, between values and the output of attention. Not where the value is also the
    residual stream (norms after a layer), nor through GELU. Needs samples.

    ## Example
    ```
    %n = layer_norm(%x, %gain, %bias)
    %y = matmul(%n, %w)
    ```
    becomes the same with `%gain` and `%bias` divided, and the rows of `%w` multiplied.

    ## Exactness
    Exact; with powers of two bit for bit.

    ## References
    Xiao et al., SmoothQuant, 2023, eq. 4.

    Args:
        strength: How much of the difference between channels the weights take, 0 to 1.
        powers_of_two: Whether factors are rounded to powers of two, which no float rounds.
    """

    name: ClassVar[str] = "smooth"
    contract: ClassVar[Contract] = Exact()

    strength: float = 0.5
    powers_of_two: bool = True

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates and folds.

        Raises:
            UsageError: For a strength out of range, or without samples.
        """
        if not 0 <= self.strength <= 1:
            raise UsageError(
                f"pass `smooth`, option `strength`: {self.strength:g} is not in 0 to 1"
            )
        readers = readers_of(module)
        found = gather_statistics(module, list(readers), sampled(module, ctx, self.name))
        coupling = Coupling(module)
        skipped: list[Skip] = []
        done: set[Value] = set()
        folded = weights = 0
        for x, sites in readers.items():
            if x in done or x not in found:
                continue
            plans = plan_factor(coupling, x, (x.rank or 1) - 1, self._factor(sites, found[x]))
            if isinstance(plans, Refused):
                skipped.append(Skip(x.name or "", f"`{plans.node}`: {plans.reason}"))
                continue
            for plan in plans:
                weights += apply_plan(coupling, plan)
                done.update(plan.powers)
            folded += 1
        stats = {"folded": folded, "constants": weights}
        return PassResult(bool(weights), stats, tuple(skipped))

    def _factor(self, sites: list[Linear], stats: Statistics) -> Array:
        """Returns what the value is multiplied by, f64[K]."""
        top = stats.top.astype(np.float64)
        weight = np.max([np.abs(site.matrix()).max(1) for site in sites], 0).astype(np.float64)
        both = (top > 0) & (weight > 0)
        top, weight = np.where(both, top, 1.0), np.where(both, weight, 1.0)
        factor = weight ** (1 - self.strength) / top**self.strength
        # the mean of all channels stays where it is: only their ratios matter
        factor /= np.exp(np.log(factor).mean())
        factor = np.clip(np.where(both, factor, 1.0), 1 / _LIMIT, _LIMIT)
        return np.exp2(np.rint(np.log2(factor))) if self.powers_of_two else factor


def readers_of(module: Module) -> dict[Value, list[Linear]]:
    """Returns the linear layers by the value that they read, in order."""
    found: dict[Value, list[Linear]] = {}
    for site in linears(module.graph):
        found.setdefault(site.x, []).append(site)
    return found


def sampled(module: Module, ctx: Context, name: str) -> Context:
    """Returns a context with generated samples where a pass needs some and none were given."""
    if ctx.samples or not ctx.probes:
        return ctx
    module.warnings.append(
        f"{name}: ranges were found on {len(ctx.probes)} synthetic samples; "
        "`--calibrate DATA` gives real ones"
    )
    return replace(ctx, samples=ctx.probes)
