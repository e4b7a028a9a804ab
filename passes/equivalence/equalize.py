"""The pass `equalize`: neighbouring layers share the range of the channels between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import conv, linalg
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.analysis.coupling.spaces import Space
from regraft.passes.equivalence.factors import Factor, placed, reach
from regraft.passes.equivalence.scaling import Refused, ScalePlan, apply_plan, plan_factor, sides_of
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

Array = np.ndarray[Any, Any]

_SWEEPS = 20
_SETTLED = 1e-3
"""Largest logarithm of a factor of the last sweep: ranges then differ by a thousandth."""

_LIMIT = 1e4
"""Largest factor: a channel that nothing reads would be scaled without end."""

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Equalize:
    """Makes the ranges of weights alike that write and read the same channels.

    ## What it does
    A channel between two layers may be made larger by the one and read with smaller weights by the
    other. For every such row of channels it chooses the factors that make the largest weight
    which writes a channel equal to the largest that reads it, for all pairs of layers in turn
    until nothing moves. Residual streams are one row, whatever number of layers writes it.

    ## When it applies
    Where a factor passes from writer to reader: through rectifiers, pooling, sums, reshapes,
    products with gates. Not through other activations, nor into a normalization. A clip between
    (ReLU6) gets a bound per channel, unless `bounds=false`.

    ## Example
    ```
    %h = relu(conv(%x, %a))
    %y = conv(%h, %b)
    ```
    becomes the same with `%a` multiplied per output and `%b` divided per input.

    ## Exactness
    Exact; with powers of two bit for bit.

    ## References
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019.

    Args:
        bounds: Whether clips may become bounds per channel.
        powers_of_two: Whether factors are rounded to powers of two, which no float rounds: results
            are then equal in every bit.
    """

    name: ClassVar[str] = "equalize"
    contract: ClassVar[Contract] = Exact()

    bounds: bool = True
    powers_of_two: bool = True

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Plans every row of channels, balances them, writes the weights."""
        coupling = Coupling(module)
        plans, skipped = _plans(coupling, module.graph, bounds=self.bounds)
        weights = _Weights(coupling)
        logs = [np.zeros(plan.factor.numbers.shape) for plan in plans]
        before = [weights.spread_of(plan) for plan in plans]
        for _ in range(_SWEEPS):
            largest = 0.0
            for plan, total in zip(plans, logs, strict=True):
                step = weights.step(plan, total)
                largest = max(largest, float(np.abs(step).max(initial=0)))
            if largest < _SETTLED:
                break
        count = 0
        for plan, total in zip(plans, logs, strict=True):
            numbers = np.exp2(np.rint(total / np.log(2))) if self.powers_of_two else np.exp(total)
            found = replace(plan, factor=Factor(plan.factor.leaves, numbers))
            count += apply_plan(coupling, found)
        stats: dict[str, int | float] = {"rows": len(plans), "weights": count}
        if before:
            stats["spread-before"] = round(float(np.median(before)), 3)
            stats["spread-after"] = round(
                float(np.median([weights.spread_of(plan) for plan in plans])), 3
            )
        return PassResult(bool(count), stats, tuple(skipped))


def layers_of(graph: Graph) -> Iterator[tuple[Node, Value, int]]:
    """Iterates over layers with a constant weight: the node, its input, the axis of channels."""
    for node in graph:
        if node.op not in (conv.conv, conv.conv_transpose, linalg.matmul, linalg.gemm):
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or not x.rank or x.rank < 2 or is_constant(x) or not is_constant(weight):
            continue
        if node.op is linalg.gemm and node.attrs["trans_a"]:
            continue
        yield node, x, x.rank - 1 if node.op in (linalg.matmul, linalg.gemm) else 1


def _plans(coupling: Coupling, graph: Graph, *, bounds: bool) -> tuple[list[ScalePlan], list[Skip]]:
    plans: list[ScalePlan] = []
    skipped: list[Skip] = []
    seen: set[Value] = set()
    for _, x, axis in layers_of(graph):
        if x in seen:
            continue
        seen.add(x)
        size = (x.shape or ())[axis]
        if not isinstance(size, int):
            continue
        found = plan_factor(coupling, x, axis, np.ones(size))
        if isinstance(found, Refused):
            skipped.append(Skip(x.name or "", f"`{found.node}`: {found.reason}"))
            continue
        if not bounds and any(node.op.name == "clip" for plan in found for node in plan.nodes):
            skipped.append(Skip(x.name or "", "a clip lies between, and bounds=false"))
            continue
        for plan in found:
            seen.update(plan.powers)
            plans.append(plan)
    return plans, skipped


class _Weights:
    """Weights as they would be, by name of the operand."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.arrays: dict[Value, Array] = {}

    def _sides(self, plan: ScalePlan) -> tuple[Array, Array]:
        """Returns the largest weight that writes a channel, and the largest that reads it."""
        shape = plan.factor.numbers.shape
        sides = {1: np.zeros(shape), -1: np.zeros(shape)}
        for value, spaces, power in self._matrices(plan):
            top = reach(plan.factor, spaces, self.arrays[value])
            side = 1 if power > 0 else -1
            sides[side] = np.maximum(sides[side], top)
        return sides[1], sides[-1]

    def _matrices(self, plan: ScalePlan) -> Iterator[tuple[Value, tuple[Space, ...], int]]:
        for (node, slot), power in plan.edits.items():
            value = node.inputs[slot]
            if value is None or (value.rank or 0) < 2 or slot != 1:
                continue
            if value not in self.arrays:
                array = constant_of(value, _ANY_SIZE)
                if array is None:
                    raise UsageError(f"pass `equalize`: `{value.name}` is too large to be read")
                self.arrays[value] = array.astype(np.float32)
            for spaces, exponent in sides_of(self.coupling, node, slot, power):
                yield value, spaces, exponent

    def step(self, plan: ScalePlan, total: Array) -> Array:
        """Balances one row of channels; adds the logarithm of the factor to `total`."""
        made, read = self._sides(plan)
        both = (made > 0) & (read > 0)
        ratio = np.where(both, read, 1.0) / np.where(both, made, 1.0)
        wanted = np.clip(total + 0.5 * np.log(ratio), -np.log(_LIMIT), np.log(_LIMIT))
        step: Array = wanted - total
        total[...] = wanted
        factor = Factor(plan.factor.leaves, np.exp(step))
        for value, spaces, power in self._matrices(plan):
            scales = placed(factor, spaces)
            self.arrays[value] = self.arrays[value] * (scales**power).astype(np.float32)
        return step

    def spread_of(self, plan: ScalePlan) -> float:
        """Returns the largest over the median range of the channels that are read."""
        _, read = self._sides(plan)
        return float(read.max() / max(float(np.median(read)), 1e-30))
