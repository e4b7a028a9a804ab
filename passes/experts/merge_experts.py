"""The pass `merge-experts`: experts that compute the same become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, gathering, reduce
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.layers import MoeLayer, moe_layers_of, rewrite_layer
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_NEVER = -1e30
"""Added to the score that fills up a group: its exponential is zero."""


@dataclass(frozen=True, slots=True)
class MergeExperts:
    """Merges experts whose weights are alike, whatever the order of their hidden channels.

    ## What it does
    Two experts are alike where, hidden channels matched by similarity, the difference of their
    weights is at most `threshold` of their norm. A group of them becomes their mean. Its score is
    the largest of theirs where one expert is chosen per token, else the logarithm of the sum of
    their exponentials: the probability of the group.

    ## When it applies
    To operators `moe` with constant weights, scored by a softmax.

    ## Example
    ```
    %y = moe(%x, %r, %up, %down) {top_k = 8}       // 8 experts, the last three the same
    ```
    becomes
    ```
    %g = reduce_log_sum_exp(gather(%r, %groups))   // 6 scores
    %y = moe(%x, %g, %up, %down) {top_k = 6}
    ```

    ## Exactness
    Lossy. Equal experts cost nothing where all experts are chosen, or one with weight 1; with
    other numbers, a token that chose two of a group now chooses the next best expert, too.

    ## References
    Li et al., Merge, Then Compress, 2024; Chen et al., Retraining-Free Merging of Sparse MoE via
    Hierarchical Clustering, 2025.

    Args:
        threshold: Largest difference of two experts' weights relative to their norm.
    """

    name: ClassVar[str] = "merge-experts"
    contract: ClassVar[Contract] = Lossy("output")

    threshold: float = 1e-6

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Finds groups and merges them.

        Raises:
            UsageError: For a negative threshold.
        """
        if self.threshold < 0:
            raise UsageError(f"pass `merge-experts`: threshold {self.threshold:g} is negative")
        layers, skipped = moe_layers_of(module)
        decisions: dict[str, list[list[int]]] = {}
        removed = 0
        for layer in layers:
            if layer.node.attrs["scoring"] == "sigmoid" or "score_bias" in layer.weights:
                skipped.append(Skip(layer.name, "its scores are no logarithms of probabilities"))
                continue
            attrs = layer.node.attrs
            if attrs["select"] != "top_k" or attrs["capacity"] or "weight_gain" in layer.weights:
                skipped.append(Skip(layer.name, "a group's weight is not the sum of its members'"))
                continue
            orders, groups = self._groups(layer)
            if len(groups) == layer.num_experts:
                skipped.append(Skip(layer.name, "no two experts are alike"))
                continue
            decisions[layer.name] = groups
            removed += layer.num_experts - len(groups)
            _merge(layer, orders, groups)
        if decisions:
            drop_dead_code(module)
        stats = {"layers": len(decisions), "experts-removed": removed}
        return PassResult(bool(decisions), stats, tuple(skipped), decisions={"groups": decisions})

    def _groups(self, layer: MoeLayer) -> tuple[list[Array], list[list[int]]]:
        """Returns each expert's hidden channels in the order of its group's first, and groups."""
        rows = [channels_of_expert(layer, expert) for expert in range(layer.num_experts)]
        last = layer.weights.get("down_bias")
        orders = [np.arange(len(rows[0])) for _ in rows]
        groups: list[list[int]] = []
        for expert, own in enumerate(rows):
            for group in groups:
                first = group[0]
                order = matched(rows[first], own)
                if order is None:
                    continue
                gap = float(np.square(rows[first] - own[order]).sum())
                if last is not None:
                    gap += float(np.square(last[first].astype(np.float64) - last[expert]).sum())
                if gap <= self.threshold**2 * float(np.square(rows[first]).sum()):
                    orders[expert] = order
                    group.append(expert)
                    break
            else:
                groups.append([expert])
        return orders, groups


def channels_of_expert(layer: MoeLayer, expert: int) -> Array:
    """Returns what every hidden channel of an expert is: f64[F, *], weights in and out, biases."""
    weights = layer.weights
    parts = [weights["up"][expert], weights["down"][expert].T]
    parts += [weights["gate"][expert]] if "gate" in weights else []
    parts += [
        weights[name][expert][:, None] for name in ("up_bias", "gate_bias") if name in weights
    ]
    return np.concatenate([part.astype(np.float64) for part in parts], axis=1)


def matched(rows: Array, others: Array) -> Array | None:
    """Returns the order that puts rows next to the most similar of others; None if two want one."""
    if np.array_equal(rows, others):
        return np.arange(len(rows))
    # nearest by distance: |a - b|^2 = |a|^2 - 2 a b + |b|^2
    distance = np.square(others).sum(1)[None] - 2 * rows @ others.T
    order = distance.argmin(1)
    return order if len(set(order.tolist())) == len(rows) else None


def _merge(layer: MoeLayer, orders: list[Array], groups: list[list[int]]) -> None:
    axes = {"up": 0, "gate": 0, "up_bias": 0, "gate_bias": 0, "down": 1}

    def mean(name: str, array: Array, group: list[int]) -> Array:
        members = [
            np.take(array[each], orders[each], axis=axes[name]) if name in axes else array[each]
            for each in group
        ]
        if len(members) == 1:
            return members[0]
        total: Array = np.mean([each.astype(np.float64) for each in members], axis=0)
        return total.astype(array.dtype)

    weights = {
        name: np.stack([mean(name, array, group) for group in groups])
        for name, array in layer.weights.items()
    }
    all_chosen = layer.top_k == layer.num_experts
    top_k = len(groups) if all_chosen else min(layer.top_k, len(groups))
    rewrite_layer(layer, weights, top_k, lambda b, scores: _grouped(b, scores, groups, layer.top_k))


def _grouped(b: Builder, scores: Value, groups: list[list[int]], top_k: int) -> Value:
    """Returns the score of every group."""
    width = max(map(len, groups))
    places = np.array([group + group[:1] * (width - len(group)) for group in groups], np.int64)
    gathered = b.op(gathering.gather, scores, b.constant(places), axis=-1)
    if top_k == 1:
        return b.op(reduce.reduce_max, gathered, axes=(-1,), keepdims=False)
    fill = np.array([[0.0] * len(group) + [_NEVER] * (width - len(group)) for group in groups])
    if fill.any():
        gathered = b.op(arithmetic.add, gathered, b.constant(fill, scores.dtype))
    return b.op(reduce.reduce_log_sum_exp, gathered, axes=(-1,), keepdims=False)
