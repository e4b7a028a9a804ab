"""The pass `permute-outliers`: channels in the order of their ranges, through the whole stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import Space, leaves_of
from regraft.passes.calibration.statistics import gather_statistics
from regraft.passes.equivalence.permuting import permute_module
from regraft.passes.equivalence.smooth import readers_of, sampled
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class PermuteOutliers:
    """Moves the channels with the largest range to the end of every row of channels.

    ## What it does
    A few channels are far larger than the others, at positions spread over the row. It sorts the
    positions by how far they stretch the ranges of the values that linear layers read, summed over
    all such values of the row (the residual stream is one row), and permutes every weight, table
    and literal that holds them. The channels that `quantize` keeps in float are then the last
    ones of a row, taken by a slice; groups of neighbours have ranges alike.

    ## When it applies
    To every row of positions that is no input or output of the graph and whose positions may
    change places: the coupling that pruning uses says which, and why others may not. Needs samples.

    ## Example
    ```
    %h = matmul(%x, %a)
    %y = matmul(relu(%h), %b)
    ```
    becomes the same with the columns of `%a` and the rows of `%b` in another order.

    ## Exactness
    Exact: the same numbers in another order; sums over them round differently.
    """

    name: ClassVar[str] = "permute-outliers"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates, sorts, permutes."""
        values = list(readers_of(module))
        if not values:
            return PassResult(False, {"rows": 0})
        found = gather_statistics(module, values, sampled(module, ctx, self.name))
        coupling = Coupling(module)
        scores: dict[Group, Array] = {}
        skipped: list[Skip] = []
        groups = {group.space: group for group in coupling.groups}
        for x in values:
            held = [groups[leaf] for leaf in _leaves(coupling, x) if leaf in groups]
            if not held:
                skipped.append(Skip(x.name or "", _why(coupling, x)))
            for group in held:
                if group.num_blocks > 1:
                    skipped.append(Skip(x.name or "", "its blocks have positions of their own"))
                    continue
                top = found[x].top.astype(np.float64)
                scores[group] = scores.get(group, 0) + _per_unit(coupling, x, group, top)
        orders = {
            group: np.argsort(score, kind="stable")
            for group, score in scores.items()
            if (np.diff(score) < 0).any()
        }
        count = permute_module(coupling, orders)
        return PassResult(bool(count), {"rows": len(orders), "weights": count}, tuple(skipped))


def _leaves(coupling: Coupling, x: Value) -> list[Space]:
    return list(dict.fromkeys(leaves_of(coupling.axes(x)[-1])))


def _per_unit(coupling: Coupling, x: Value, group: Group, top: Array) -> Array:
    """Returns how far each unit stretches the range of a value: its top over the median."""
    units = unit_of(coupling.axes(x)[-1], group.space)
    relative = top / max(float(np.median(top)), 1e-30)
    score = np.zeros(group.size)
    np.maximum.at(score, units[units >= 0], relative[units >= 0])
    return score


def _why(coupling: Coupling, x: Value) -> str:
    pins = [leaf.pin for leaf in _leaves(coupling, x) if leaf.pin is not None]
    return str(pins[0]) if pins else "no weights hold its channels"
