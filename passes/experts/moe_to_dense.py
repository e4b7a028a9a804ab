"""The pass `moe-to-dense`: layers of experts become feed-forward blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg, moe
from regraft.ir.ops.moe_hidden import is_bounded
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.layers import MoeLayer, moe_layers_of
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `moe-to-dense`"

_OF_ROUTING = frozenset({"score_bias", "weight_gain"})
"""What says who computes a token, and with what weight."""


@dataclass(frozen=True, slots=True)
class MoeToDense:
    """Replaces layers of experts by plain or gated feed-forward blocks without a router.

    ## What it does
    `mean` takes the mean of the experts' weights, `expert` the weights of one of them. `concat`
    puts all hidden channels side by side, `down` over the number of experts: every expert computes
    every token with the same weight. Results are multiplied by what the weights of the chosen sum
    to: 1 where they are renormalized, else as for a router of zeros.

    ## When it applies
    To operators `moe` with constant weights.

    ## Example
    ```
    %y = moe(%x, %r, %up, %down) {top_k = 2, renormalize = true, activation = "gelu"}
    ```
    becomes
    ```
    %h = gelu(matmul(%x, %up))
    %y = matmul(%h, %down)
    ```

    ## Exactness
    Lossy. The same, with renormalized weights, where all experts are equal (`mean`, `expert`,
    `concat`) or where they are the shards of one copy (`concat`).

    ## References
    The inverse of Komatsuzaki et al., Sparse Upcycling, 2023; Chen et al., Task-Specific Expert
    Pruning, 2022 (one expert per task).

    Args:
        method: What the block is made of.
        expert: `expert`: its number.
    """

    name: ClassVar[str] = "moe-to-dense"
    contract: ClassVar[Contract] = Lossy("output")

    method: Literal["mean", "concat", "expert"] = "mean"
    expert: int = 0

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites every layer.

        Raises:
            UsageError: For a number that is no expert.
        """
        found, skipped = moe_layers_of(module)
        layers = [layer for layer in found if not _further(layer)]
        skipped += [
            Skip(layer.name, "its experts clip, shift or normalize what a plain block does not")
            for layer in found
            if _further(layer)
        ]
        for layer in layers:
            if not 0 <= self.expert < layer.num_experts:
                raise UsageError(
                    f"{_WHO}, option `expert`: {self.expert} is no expert of `{layer.name}`, "
                    f"which has {layer.num_experts}"
                )
        for layer in layers:
            _write(layer, self._weights(layer))
        if layers:
            drop_dead_code(module)
        reasons = [Skip(each.node, each.reason) for each in skipped]
        return PassResult(bool(layers), {"layers": len(layers)}, tuple(reasons))

    def _weights(self, layer: MoeLayer) -> dict[str, Array]:
        """Returns up and gate f[F, D], down f[O, F], biases f[*]."""
        found = {name: array for name, array in layer.weights.items() if name not in _OF_ROUTING}
        num, total = layer.num_experts, _total(layer)
        made: dict[str, Array] = {}
        for name, array in found.items():
            wide = array.astype(np.float64)
            if self.method == "expert":
                one = wide[self.expert]
            elif self.method == "mean" or name == "down_bias":
                one = wide.mean(0)
            elif name == "down":
                one = wide.swapaxes(0, 1).reshape(wide.shape[1], -1) / num
            else:
                one = wide.reshape(-1, *wide.shape[2:])
            factor = total if name in ("down", "down_bias") else 1.0
            made[name] = (one * factor).astype(array.dtype)
        return made


def _further(layer: MoeLayer) -> bool:
    attrs = layer.node.attrs
    return is_bounded(attrs) or bool(attrs["weigh_input"]) or bool(attrs["norm_epsilon"])


def _total(layer: MoeLayer) -> float:
    """Returns what the weights of the chosen sum to; for a router of zeros where it varies."""
    attrs = layer.node.attrs
    scale = float(attrs["routed_scale"])
    if "weight_gain" in layer.weights:
        return scale * layer.top_k
    if attrs["renormalize"] or attrs["scoring"] == "topk_softmax":
        return scale
    each = 0.5 if attrs["scoring"] == "sigmoid" else 1 / layer.num_experts
    return scale * layer.top_k * each


def _write(layer: MoeLayer, weights: Mapping[str, Array]) -> None:
    node = layer.node
    b = Builder(layer.graph, node, node.loc)
    prefix = layer.name.removesuffix(".up").removesuffix(".experts")

    def project(rows: Value, name: str) -> Value:
        # stored as the product reads it, [in, out]
        content = ArrayWeight(np.ascontiguousarray(weights[name].T))
        result = b.op(linalg.matmul, rows, b.weight(f"{prefix}.{name}", content, Role.PARAM))
        bias = weights.get(f"{name}_bias")
        if bias is None:
            return result
        added = b.weight(f"{prefix}.{name}_bias", ArrayWeight(bias), Role.PARAM)
        return b.op(arithmetic.add, result, added)

    act = moe.ACTIVATIONS[node.attrs["activation"]]
    hidden = project(layer.x, "up")
    if "gate" in weights:
        hidden = b.op(arithmetic.mul, act.write(b, project(layer.x, "gate")), hidden)
    else:
        hidden = act.write(b, hidden)
    layer.graph.replace(node, [project(hidden, "down")])
