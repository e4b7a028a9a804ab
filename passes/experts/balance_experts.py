"""The pass `balance-experts`: a bias of the choice evens out what experts have to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.calibration.moments import calibration_samples
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.experts.layers import MoeLayer, moe_layers_of
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `balance-experts`"
_BIAS = 8
"""Operand of `moe`."""


@dataclass(frozen=True, slots=True)
class BalanceExperts:
    """Adds a bias to the scores that choose experts, and not to their weights.

    ## What it does
    On samples, step by step, the bias of an expert goes up by `rate` where fewer tokens than the
    mean choose it, and down where more do. Scores, weights and experts stay as they are.

    ## When it applies
    To operators `moe` of the main graph with constant weights, where tokens choose and fewer than
    all experts are chosen. Needs samples.

    ## Example
    ```
    %y = moe(%x, %r, %up, %down) {top_k = 2, scoring = "sigmoid"}
    ```
    becomes the same with the operand `score_bias`, f32[8].

    ## Exactness
    Lossy: tokens near the border between two experts go to the other one.

    ## References
    Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024.

    Args:
        rate: What a step moves a bias by.
        steps: How many there are.
        enough: Largest load over the mean at which a layer is even; it ends there.
    """

    name: ClassVar[str] = "balance-experts"
    contract: ClassVar[Contract] = Lossy("output")

    rate: float = 0.001
    steps: int = 400
    enough: float = 1.02

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Measures the scores of every layer once, and balances it by itself.

        Raises:
            UsageError: For options out of range, or without samples.
        """
        for name, value, least in (("rate", self.rate, 0), ("steps", self.steps, 1)):
            if value < least:
                raise UsageError(f"{_WHO}, option `{name}`: {value:g} is less than {least}")
        found, skipped = moe_layers_of(module)
        layers = []
        for layer in found:
            reason = _reason(layer, module)
            if reason is None:
                layers.append(layer)
            else:
                skipped.append(Skip(layer.name, reason))
        before, after = [], []
        if layers:
            for layer, scores in zip(layers, _scores(module, layers, ctx), strict=True):
                bias, first, last = self._balanced(layer, scores)
                _write(layer, bias)
                before.append(first)
                after.append(last)
            drop_dead_code(module)
        stats: dict[str, int | float] = {"layers": len(layers)}
        if layers:
            stats |= {"worst-load-before": max(before), "worst-load": max(after)}
        return PassResult(bool(layers), stats, tuple(skipped))

    def _balanced(self, layer: MoeLayer, scores: Array) -> tuple[Array, float, float]:
        """Returns the bias, and the largest load over the mean before and after."""
        old = layer.weights.get("score_bias")
        bias = np.zeros(layer.num_experts) if old is None else old.astype(np.float64)
        best, least, first = bias, np.inf, 0.0
        for step in range(self.steps + 1):
            taken, _ = moe.route(layer.node.attrs, scores, bias.astype(np.float32))
            counts = taken.sum(0)
            worst = float(counts.max() / counts.mean())
            first = worst if step == 0 else first
            if worst < least:
                best, least = bias, worst
            if least <= self.enough:
                break
            bias = bias + self.rate * np.sign(counts.mean() - counts)
        return best, first, least


def _reason(layer: MoeLayer, module: Module) -> str | None:
    if layer.graph is not module.graph:
        return "within a body, where nothing is measured"
    if layer.node.attrs["select"] == "expert_choice":
        return "experts choose, and are even by themselves"
    if layer.top_k == layer.num_experts:
        return "every expert computes every token"
    return None


def _scores(module: Module, layers: list[MoeLayer], ctx: Context) -> list[Array]:
    samples = calibration_samples(module, ctx, _WHO)
    assert ctx.activations is not None, "samples come with a source"
    values = list(dict.fromkeys(layer.scores for layer in layers))
    found: dict[Any, list[Array]] = {value: [] for value in values}
    for content in ctx.activations.activations(module, values, samples):
        for value in values:
            array = content[value]
            found[value].append(array.reshape(-1, array.shape[-1]).astype(np.float32))
    return [np.concatenate(found[layer.scores]) for layer in layers]


def _write(layer: MoeLayer, bias: Array) -> None:
    node = layer.node
    b = Builder(layer.graph, node, node.loc)
    dtype = layer.weights["up"].dtype
    name = f"{layer.name.removesuffix('.up')}.score_bias"
    operands = list(node.inputs)
    operands[_BIAS] = b.weight(name, ArrayWeight(bias.astype(dtype)), Role.PARAM)
    while operands[-1] is None:
        operands.pop()
    layer.graph.replace(node, [b.op(moe.moe, *operands, **node.attrs)])
