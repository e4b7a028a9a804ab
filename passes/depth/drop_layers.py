"""The pass `drop-layers`: removes layers of a stack of equal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.layers import Layer
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.depth.influence import RemovalLoss, influences, knapsack, removal_units
from regraft.passes.depth.stack import (
    bypass,
    check_numbers,
    check_removable,
    judged_on,
    layers_of,
    removable,
)
from regraft.passes.protocol import (
    ActivationSource,
    Context,
    Contract,
    Lossy,
    PassResult,
    Samples,
)
from regraft.passes.solver import additivity

_WHO = "pass `drop-layers`"
_JOINT = 12
"""Joint removals on which it is measured whether losses add up."""


@dataclass(frozen=True, slots=True)
class DropLayers:
    """Removes layers of a stack of equal ones: what entered a layer goes on as it is.

    ## What it does
    Finds repeated layers along the residual stream by their structure, numbers them from 0 in
    order (over all stacks, the encoder's before the decoder's), and replaces the result of each
    named layer by its input. Weights that nothing reads any more are removed. With `count`, the
    layers that turn the stream least are removed: those of the smallest mean of 1 - cos(what
    enters, what leaves) over the positions of the samples that count. With `by=outputs`, or a
    `rate`, the error of the outputs without each layer alone is measured, and a knapsack is solved
    for the layers whose errors sum up to least; how well errors add up is in the report.

    ## When it applies
    To layers whose input and result have the same type, and which hand nothing but the stream to
    the rest of the model: a layer with a cache of its own is refused.

    ## Example
    ```
    %h1 = layer(%h0)
    %h2 = layer(%h1)
    %h3 = layer(%h2)
    ```
    with `drop-layers{layers=[1]}` becomes
    ```
    %h1 = layer(%h0)
    %h3 = layer(%h1)
    ```

    ## Exactness
    Lossy. The pass `recover` regains a part.

    ## References
    Fan et al., Reducing Transformer Depth on Demand with Structured Dropout, 2020; Zhang et al.,
    LAPTOP-Diff, 2024; Men et al., ShortGPT, 2024.

    Args:
        layers: Numbers of the layers to remove, from 0.
        count: How many to remove, in place of their numbers.
        rate: Least fraction of the layers' parameters to remove, in place of either.
        by: What a `count` is chosen by: `influence` on the stream, or loss at the `outputs`.
        mask: Input that is nonzero where positions count, where the module has it.
    """

    name: ClassVar[str] = "drop-layers"
    contract: ClassVar[Contract] = Lossy("output")

    layers: tuple[int, ...] = ()
    count: int = 0
    rate: float = 0.0
    by: Literal["influence", "outputs"] = "influence"
    mask: str = "attention_mask"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Removes the layers.

        Raises:
            UsageError: For numbers that no layer has.
            UnsupportedError: When a layer hands more than the stream to the rest of the model.
        """
        found = layers_of(module)
        numbers, stats = self._chosen(module, found, ctx)
        chosen = sorted(numbers, reverse=True)
        check_numbers(_WHO, chosen, found)
        for number in chosen:
            check_removable(_WHO, found[number], number)
        bypass(found, chosen)
        removed = drop_dead_code(module)
        return PassResult(
            True,
            {
                "layers-before": len(found),
                "layers": len(found) - len(chosen),
                "removed": removed,
                **stats,
            },
            decisions={"layers": sorted(chosen)},
        )

    def _chosen(
        self, module: Module, found: list[Layer], ctx: Context
    ) -> tuple[set[int], dict[str, int | float]]:
        """Returns the numbers of the layers that go, with what they were judged by."""
        given = [name for name in ("layers", "count", "rate") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"{_WHO}: give `{given[0]}` or `{given[1]}`, not both")
        recorded = ctx.replay.get(self.name, {}).get("layers")
        if self.layers or not given or recorded:
            return set(recorded or self.layers), {}
        if not 0 <= self.rate < 1:
            raise UsageError(f"{_WHO}, option `rate`: {self.rate:g} is not from 0 to below 1")
        can_go = removable(found)
        if self.count > len(can_go):
            raise UsageError(
                f"{_WHO}, option `count`: {self.count} of {len(can_go)} layers that can be removed"
            )
        source, samples = judged_on(ctx, f"{_WHO}, option `{given[0]}`", "name the `layers`")
        if self.by == "influence" and self.count:
            scores = influences(module, can_go, self.mask, source, samples)
            least = sorted(scores, key=lambda number: (scores[number], number))
            stats: dict[str, int | float] = {f"influence-{n}": s for n, s in scores.items()}
            return set(least[: self.count]), stats
        return self._by_outputs(module, can_go, source, samples)

    def _by_outputs(
        self, module: Module, can_go: dict[int, Layer], source: ActivationSource, samples: Samples
    ) -> tuple[set[int], dict[str, int | float]]:
        loss = RemovalLoss(module, source, samples)
        units = removal_units(loss, list(can_go))
        choice = knapsack(units, can_go, self.rate, self.count)
        numbers = {int(u.name) for u, k in zip(units, choice.choice, strict=True) if k == 0}
        joint = additivity(loss, units, count=_JOINT)
        stats: dict[str, int | float] = {f"loss-{u.name}": float(u.losses[0]) for u in units}
        stats |= {
            "sum-of-losses": choice.loss,
            "joint-loss": loss.loss({str(number): 0.0 for number in numbers}),
            "additivity-r2": joint.r_squared,
            "additivity-rank-correlation": joint.rank_correlation,
        }
        return numbers, stats
