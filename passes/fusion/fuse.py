"""The pass `fuse`: raises what is spelled out to the canonical operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.collector import collector_paused
from regraft.ir.constants import is_constant
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops import linalg, moe, selecting
from regraft.ir.rewrite import rewrite
from regraft.passes.analysis.attention import AttentionFinder
from regraft.passes.analysis.blocks import Recognizer, graphs_of
from regraft.passes.analysis.group_norms import join_groups
from regraft.passes.analysis.norms import NormFinder
from regraft.passes.analysis.rotary import find_rotary
from regraft.passes.analysis.unary_functions import ActivationFinder
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.divided_late import RULES as DIVIDED_LATE
from regraft.passes.fusion.plan import Plan
from regraft.passes.fusion.prove import Prover
from regraft.passes.fusion.raise_activations import plan_activations
from regraft.passes.fusion.raise_attention import plan_attention
from regraft.passes.fusion.raise_experts import plan_experts
from regraft.passes.fusion.raise_norms import plan_norms
from regraft.passes.fusion.raise_rotary import plan_rotary
from regraft.passes.fusion.raise_routing import plan_routing
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

_MAX_ROUNDS = 8
_CHOICES = frozenset({selecting.top_k, selecting.arg_max, selecting.one_hot, moe.moe})
"""Every layer of experts that chooses by scores has one."""


@dataclass(frozen=True, slots=True)
class Fuse:
    """Raises norms, activation functions, attention, rotary embedding and experts to operators.

    ## What it does
    Finds what computes a layer, RMS, group or instance norm, a GELU, SiLU, hard-swish and the other
    activation functions, and replaces it by the operator of that name. What a place computes is
    found by evaluating it, so that it does not matter how an exporter spelled it. Attention is
    found by its skeleton (a product, a softmax, a product with a third tensor), whatever the
    layout, and its scale, soft cap, masks, windows and groups of heads are read off; rotary
    embedding by the channels it turns. Layers of experts become `moe`, whatever their form: experts
    stacked or one after the other, for all tokens or for those that chose them, or their matrices
    gathered; what decides their weights is found by drawing scores. All are evaluated against the
    source first.

    ## When it applies
    Where nothing else uses the inside of a place. Places that nearly are a norm (epsilon added to
    the standard deviation, another axis than the last) are reported as skipped.

    ## Example
    ```
    %1 = div(%x, %sqrt2)
    %2 = erf(%1)
    %3 = add(%2, %one)
    %4 = mul(%x, %3)
    %5 = mul(%4, %half)                     // becomes gelu(%x)
    ```

    ## Exactness
    A row of attention without a visible key keeps its meaning, except that a row of NaN (all
    scores -inf and no guard in the source) becomes 0. Exact in real arithmetic, up to the
    rounding of constants such as sqrt(2) in the element type that holds them.

    ## References
    Hendrycks and Gimpel 2016 (GELU), Ba et al. 2016 (layer norm), Zhang and Sennrich 2019
    (RMS norm).
    """

    name: ClassVar[str] = "fuse"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Plans and raises until nothing is left to raise."""
        counts: Counter[str] = Counter()
        changed = False
        prover = Prover()
        with collector_paused():
            changed = bool(rewrite(module, DIVIDED_LATE, observer=ctx.observer).counts)
            for _ in range(_MAX_ROUNDS):
                plan = _plan(module, prover)
                if not plan.places:
                    return _result(module, changed, counts, plan, prover)
                stats = rewrite(module, plan.rules(), start=plan.in_order(), observer=ctx.observer)
                counts.update(stats.counts)
                changed = True
        raise AssertionError(f"something is raised to what is raised again: {counts}")


def _is_stack(node: Node) -> bool:
    """Returns whether a node multiplies by several constant matrices."""
    if node.op is not linalg.matmul:
        return False
    return any(
        v is not None and v.rank == 3 and v.shape is not None and v.shape[0] != 1 and is_constant(v)
        for v in node.inputs
    )


def _result(
    module: Module, changed: bool, counts: Counter[str], plan: Plan, prover: Prover
) -> PassResult:
    """Drops what is left of the places, and says what was raised and what was proved of it."""
    if changed:
        drop_dead_code(module)
    stats: dict[str, int | float] = dict(sorted(counts.items()))
    if prover.num_proved or prover.num_unproved:
        stats |= {"proved": prover.num_proved, "unproved": prover.num_unproved}
    unproved = tuple(Skip(place, reason) for place, reason in prover.unproved.items())
    return PassResult(changed, stats, tuple(plan.skipped), unproved=unproved)


def _plan(module: Module, prover: Prover) -> Plan:
    """Recognizes norms, activations and attention in the graph and in all bodies."""
    plan = Plan()
    attentions = AttentionFinder()
    norms, activations = NormFinder(), ActivationFinder()
    for graph in graphs_of(module.graph):
        taken: set[Node] = set()
        search = norms.find(graph, taken)
        plan.skipped += search.skipped
        plan_norms(join_groups(search.norms, taken), plan)
        plan_activations(activations.find(graph, taken), plan)
        plan_rotary(find_rotary(graph), plan, prover)
        plan_attention(attentions.find(graph), plan, prover)
    if not plan.places:
        recognizer = Recognizer()
        for graph in graphs_of(module.graph):
            if any(node.op in _CHOICES or _is_stack(node) for node in graph):
                plan_experts(recognizer.graph(graph).moe, plan, prover)
                plan_routing(graph, plan)
    plan.skipped += [
        Skip(str(value.name), f"attention: {reason}") for value, reason in attentions.rejected
    ]
    return plan
