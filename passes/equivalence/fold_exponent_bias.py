"""The pass `fold-exponent-bias`: exponent biases per channel become powers of two in weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.equivalence.scaling import Refused, apply_plan, plan_factor
from regraft.passes.equivalence.smooth import readers_of, sampled
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip
from regraft.passes.quantization.small_floats import bias_of, small_float

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class FoldExponentBias:
    """Gives every channel of what linear layers read an exponent bias of its own, at no cost.

    ## What it does
    A float of few bits covers few powers of two; channels that are smaller than the largest fall
    into its lowest values. With the bias t of the tensor and the bias b of a channel, the channel
    is multiplied by 2^k, k = round(b) - round(t), at most 2^E - 1, and the rows of the weights that
    read it are divided: after it, one bias serves all channels.

    ## When it applies
    Where a factor passes from what makes the value to the readers alone, as for `smooth`. Needs
    samples.

    ## Example
    ```
    %n = rms_norm(%x, %gain)
    %y = matmul(%n, %w)
    ```
    becomes the same with `%gain` and `%w` times powers of two.

    ## Exactness
    Exact, bit for bit: factors are powers of two.

    ## References
    Liu et al., LLM-FP4, 2023, section 4.2 (pre-shifted exponent bias).

    Args:
        exponent: Bits of the exponent of the float that is meant.
        mantissa: Bits of its mantissa.
    """

    name: ClassVar[str] = "fold-exponent-bias"
    contract: ClassVar[Contract] = Exact()

    exponent: int = 2
    mantissa: int = 1

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates and folds."""
        small_float(self.exponent, self.mantissa)  # refuses other widths
        readers = list(readers_of(module))
        if not readers:
            return PassResult(False, {"folded": 0})
        found = gather_statistics(module, readers, sampled(module, ctx, self.name))
        coupling = Coupling(module)
        skipped: list[Skip] = []
        done: set[Value] = set()
        folded = 0
        for x in readers:
            if x in done:
                continue
            shifts = channel_shifts(found[x].top, self.exponent, self.mantissa)
            plans = plan_factor(coupling, x, (x.rank or 1) - 1, np.exp2(shifts))
            if isinstance(plans, Refused):
                skipped.append(Skip(x.name or "", f"`{plans.node}`: {plans.reason}"))
                continue
            for plan in plans:
                apply_plan(coupling, plan)
                done.update(plan.powers)
            folded += 1
        return PassResult(bool(folded), {"folded": folded}, tuple(skipped))


def channel_shifts(top: Array, exponent: int, mantissa: int) -> Array:
    """Returns k of every channel, whole numbers f64[K].

    Args:
        top: Largest absolute value of every channel.
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
    """
    fmt = small_float(exponent, mantissa)
    biases = np.rint(bias_of(fmt, top.astype(np.float64)))
    whole = np.rint(bias_of(fmt, float(top.max())))
    shifts: Array = np.clip(biases - whole, 0, 2**exponent - 1)
    return shifts
