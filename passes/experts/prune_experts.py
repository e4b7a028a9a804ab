"""The pass `prune-experts`: layers of experts lose some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.calibration.moments import calibration_samples
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.layers import (
    MoeLayer,
    loads_of,
    moe_layers_of,
    rewrite_layer,
    scores_of,
)
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `prune-experts`"


@dataclass(frozen=True, slots=True)
class PruneExperts:
    """Removes experts, and their rows of the router.

    ## What it does
    Removes the experts that are named by number (`drop`), or all but `experts` of every layer:
    those with the least sum, over the samples, of routing weight times norm of the result
    (`score=contribution`), or chosen least often (`score=frequency`). Without either, the experts
    that no sample chooses. What remains is routed as if the others had scores of minus infinity.

    ## When it applies
    To operators `moe` with constant weights. `experts`, and dropping what is never chosen, need
    samples. As many experts stay as are chosen per token, at least.

    ## Example
    ```
    %y = moe(%x, %r, %up, %down) {top_k = 2}   // 8 experts
    ```
    with `prune-experts{experts=6}` becomes the same with `f32[6, 3072, 768]`.

    ## Exactness
    Lossy. The same on tokens that chose none of the removed experts, with renormalized weights.

    ## References
    Chen et al., Task-Specific Expert Pruning for Sparse Mixture-of-Experts, 2022; Lu et al., Not
    All Experts are Equal, 2024.

    Args:
        experts: How many stay in every layer; 0: those that samples choose.
        drop: Numbers of experts that go, in every layer.
        score: What an expert counts for.
    """

    name: ClassVar[str] = "prune-experts"
    contract: ClassVar[Contract] = Lossy("output")

    experts: int = 0
    drop: tuple[int, ...] = ()
    score: Literal["contribution", "frequency"] = "contribution"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Chooses what stays in each layer, then rewrites.

        Raises:
            UsageError: For a number that is no expert, or without the samples that it needs.
        """
        layers, skipped = moe_layers_of(module)
        grouped = [layer for layer in layers if layer.node.attrs["select"] == "groups"]
        skipped += [Skip(layer.name, "its experts stand in groups of equal size")
                    for layer in grouped]  # fmt: skip
        layers = [layer for layer in layers if layer not in grouped]
        if not self.drop and any(layer.graph is not module.graph for layer in layers):
            inner = [layer for layer in layers if layer.graph is not module.graph]
            skipped += [Skip(layer.name, "within a body, where nothing is measured")
                        for layer in inner]  # fmt: skip
            layers = [layer for layer in layers if layer.graph is module.graph]
        recorded = ctx.replay.get(self.name, {}).get("kept")
        if recorded is not None:
            kept = [list(recorded.get(layer.name, range(layer.num_experts))) for layer in layers]
        elif self.drop:
            kept = [self._named(layer) for layer in layers]
        else:
            kept = self._measured(module, layers, ctx) if layers else []
        decisions: dict[str, list[int]] = {}
        removed = 0
        for layer, stay in zip(layers, kept, strict=True):
            lost = layer.num_experts - len(stay)
            if not lost:
                skipped.append(Skip(layer.name, "every expert stays"))
                continue
            if len(stay) < layer.top_k:
                raise UsageError(
                    f"{_WHO}: {len(stay)} experts of `{layer.name}` would stay, and "
                    f"{layer.top_k} are chosen per token"
                )
            decisions[layer.name] = stay
            removed += lost
            keep_experts(layer, stay)
        if decisions:
            drop_dead_code(module)
        stats = {"layers": len(decisions), "experts-removed": removed}
        return PassResult(bool(decisions), stats, tuple(skipped), decisions={"kept": decisions})

    def _named(self, layer: MoeLayer) -> list[int]:
        for expert in self.drop:
            if not 0 <= expert < layer.num_experts:
                raise UsageError(
                    f"{_WHO}, option `drop`: {expert} is no expert of `{layer.name}`, which has "
                    f"{layer.num_experts}"
                )
        return [expert for expert in range(layer.num_experts) if expert not in self.drop]

    def _measured(
        self, module: Module, layers: Sequence[MoeLayer], ctx: Context
    ) -> list[list[int]]:
        samples = calibration_samples(module, ctx, _WHO)
        assert ctx.activations is not None, "samples come with a source"
        values = [value for layer in layers for value in (layer.x, layer.scores)]
        counts = [np.zeros(layer.num_experts, np.int64) for layer in layers]
        added = [np.zeros(layer.num_experts) for layer in layers]
        for found in ctx.activations.activations(module, list(dict.fromkeys(values)), samples):
            for idx, layer in enumerate(layers):
                count, sums = loads_of(layer, found[layer.x], found[layer.scores])
                counts[idx] += count
                added[idx] += sums
        return [
            self._best(layer, count, sums)
            for layer, count, sums in zip(layers, counts, added, strict=True)
        ]

    def _best(self, layer: MoeLayer, counts: Array, added: Array) -> list[int]:
        if self.experts:
            worth = added if self.score == "contribution" else counts
            order = np.argsort(-worth, kind="stable")[: self.experts]
            return sorted(order.tolist())
        order = np.argsort(-counts, kind="stable")
        least = max(layer.top_k, int((counts > 0).sum()))
        return sorted(order[:least].tolist())


def keep_experts(layer: MoeLayer, kept: Sequence[int]) -> None:
    """Rewrites a layer to some of its experts: as if the others' scores were minus infinity."""
    places = list(kept)
    rewrite_layer(
        layer,
        {name: array[places] for name, array in layer.weights.items()},
        layer.top_k,
        lambda b, scores: scores_of(b, scores, places),
    )
