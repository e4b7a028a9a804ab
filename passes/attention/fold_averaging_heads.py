"""The pass `fold-averaging-heads`: heads that weigh all keys alike become a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import attention, gathering, reduce, repeating, slicing
from regraft.ir.ops.attention_weights import is_softmax, masked_softmax
from regraft.ir.rewrite import Rewriter, rewrite
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_LOOKED = 8
"""Samples that heads are judged on."""


@dataclass(frozen=True, slots=True)
class FoldAveragingHeads:
    """Replaces attention heads that weigh all keys alike by the mean of their values.

    ## What it does
    Computes the weights of every head on samples. Where no weight is further from 1 / n than
    `tolerance` / n, n being the number of keys, queries and keys of the head are not computed any
    more: its result is the mean of its values. The other heads stay as they are.

    ## When it applies
    With samples, to attention of every query to every key, without masks and without groups of
    heads that share keys.

    ## Example
    ```
    fold-averaging-heads{tolerance=0.05}    // with --calibrate
    ```

    ## Exactness
    Lossy; a weight is off by `tolerance` / n at most on the samples.

    ## References
    Ramsauer et al., Hopfield Networks is All You Need, 2021, section 3.

    Args:
        tolerance: How far from 1 / n a weight may be, as a fraction of 1 / n.
    """

    name: ClassVar[str] = "fold-averaging-heads"
    contract: ClassVar[Contract] = Lossy("output")

    tolerance: float = 0.05

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Judges the heads on samples, then folds.

        Raises:
            UsageError: Without samples, or a runtime to run them.
        """
        samples = list(islice(ctx.samples or ctx.probes, _LOOKED))
        if ctx.activations is None or not samples:
            raise UsageError(
                f"pass `{self.name}`: heads are judged on samples, and there are none",
                hint="give `--calibrate DATA`",
            )
        raised = Fuse().run(module, ctx)
        plan, skipped, folded, heads = Plan(), [], 0, 0
        found: list[Node] = []
        for node in module.graph:
            if node.op is attention.attention:
                reason = _misfit(node)
                if reason:
                    skipped.append(Skip(str(node.output.name), f"attention: {reason}"))
                else:
                    found.append(node)
        far = _distances(module, found, samples, ctx)
        for node in found:
            heads += len(far[node])
            chosen = [h for h, distance in enumerate(far[node]) if distance <= self.tolerance]
            if chosen:
                folded += len(chosen)
                plan.add(node, self.name, _folded(chosen, len(far[node])))
        rewrite(module, plan.rules(), start=plan.in_order(), observer=ctx.observer)
        if folded:
            drop_dead_code(module)
        stats = {"heads": heads, "folded": folded}
        return PassResult(raised.changed or folded > 0, stats, tuple(skipped))


def _misfit(node: Node) -> str:
    q, k, v = node.inputs[:3]
    attrs = node.attrs
    if q is None or k is None or v is None or not isinstance((q.shape or (0, ""))[1], int):
        return "the number of its heads is not known"
    hidden = any(value is not None for value in node.inputs[3:])
    if hidden or attrs["causal_offset"] is not None or not is_softmax(attrs):
        return "its queries do not see every key by a softmax alone"
    return "" if attrs["kv_groups"] == 1 else "its heads share keys"


def _distances(
    module: Module, found: Sequence[Node], samples: Sequence[Any], ctx: Context
) -> dict[Node, Array]:
    """Returns how far the weights of each head are from 1 / n, as a fraction of 1 / n."""
    far = {node: np.zeros(int(str((node.output.shape or ())[1]))) for node in found}
    values = list(dict.fromkeys(v for n in found for v in n.inputs[:2] if v is not None))
    if ctx.activations is None or not values:
        return far
    for states in ctx.activations.activations(module, values, samples):
        for node in found:
            q, k = (states[v].astype(np.float64) for v in node.inputs[:2] if v is not None)
            scores = q @ k.swapaxes(-1, -2) * node.attrs["scale"]
            cap = node.attrs["softcap"]
            scores = cap * np.tanh(scores / cap) if cap > 0 else scores
            off = np.abs(masked_softmax(scores) * scores.shape[3] - 1)
            far[node] = np.maximum(far[node], off.max(axis=(0, 2, 3), initial=0))
    return far


def _folded(chosen: list[int], heads: int) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, _build(node, chosen, heads, rw.builder(node)))

    return apply


def _build(node: Node, chosen: list[int], heads: int, b: Builder) -> Value:
    q, k, v = node.inputs[:3]
    if q is None or k is None or v is None or q.shape is None or v.shape is None:
        raise AssertionError("the operands were checked")
    rest = [head for head in range(heads) if head not in chosen]
    values = _heads(b, v, chosen)
    mean = b.op(reduce.reduce_mean, values, axes=(2,), keepdims=True)
    shape = (q.shape[0], len(chosen), q.shape[2], v.shape[3])
    mean = b.op(repeating.expand, mean, shape=shape)
    if not rest:
        return mean
    others = b.op(node.op, *(_heads(b, x, rest) for x in (q, k, v)), **node.attrs)
    joined = b.op(slicing.concat, others, mean, axis=1)
    order = np.argsort(np.array([*rest, *chosen]))
    return b.op(gathering.gather, joined, b.constant(order.astype(np.int64)), axis=1)


def _heads(b: Builder, x: Value, heads: list[int]) -> Value:
    return b.op(gathering.gather, x, b.constant(np.array(heads, np.int64)), axis=1)
