"""The pass `canonicalize-recurrence`: recurrences and linear attention as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    control,
    fill,
    linear_attention,
    repeating,
    reshaping,
    slicing,
)
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.linearization.lifting import log_of
from regraft.passes.linearization.linear_steps import NO_LOGARITHM, linear_chains, rewrite_steps
from regraft.passes.linearization.looped import rewrite_loop
from regraft.passes.linearization.unrolled import Chain, Part, chains, reads
from regraft.passes.linearization.written_mixers import read_mixers
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

_LOOPS = (control.scan, control.loop)
_MATRIX, _VECTOR = 3, 2
"""Axes of a state: [batch, channels, state size], or [batch, channels]."""


@dataclass(frozen=True, slots=True)
class CanonicalizeRecurrence:
    """Writes h_t = a_t h_(t-1) + u_t, y_t = c_t h_t as the operator `linear_attention`.

    ## What it does
    Finds recurrences that were captured step by step, or that a file holds as `Scan` or
    `Loop`: selective
    state spaces (Mamba), gated linear networks, linear attention, RetNet, gated linear attention.
    What is computed alike at every step is computed for all of them at once. States that keys and
    values are added to, and that queries read, are that of the operator. Of others every channel is
    a head: what is added are its keys, its values are 1, what it is read by are its queries, and
    the logarithm of its factors its decay. The operator computes them in chunks; `carry-states`
    gives it a state, and `audit` and the kernels of targets know it. Linear and hybrid attention
    that a file holds in simpler operators (what `linearize-attention` leaves in ONNX) become
    `linear_attention` and `hybrid_attention` again, compared on drawn inputs first.

    ## When it applies
    Where factors and gains do not depend on the state, are computed from positions of tensors by
    operators on elements, moves and sums, and factors are not negative by how they are made:
    exponentials, sigmoids, one minus a sigmoid, constants, and their products. Attention has to end
    in a division by the sum of its weights. What is left alone says why.

    ## Example
    ```
    %h1 = add(mul(gather(%a, 1), %h0), gather(%u, 1))
    %y1 = matmul(%h1, gather(%c, 1))                    // and so on, for every position
    ```
    becomes
    ```
    %y, %h = linear_attention(%c, %u, %ones, %h0, %log_a) {rule = "gated"}
    ```

    ## Exactness
    Exact: sums in another order.

    ## References
    Sieber et al., Understanding the differences in Foundation Models: Attention, State Space
    Models, and Recurrent Neural Networks, 2024; Gu and Dao, Mamba, 2023 (S6).
    """

    name: ClassVar[str] = "canonicalize-recurrence"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Replaces every chain of steps."""
        skipped: dict[str, str] = {}
        made = steps = 0
        for graph in graphs_of(module.graph):
            for chain in list(chains(graph)):
                reason = _replace(chain)
                if reason:
                    skipped[str(chain.steps[-1].node.output.name)] = reason
                else:
                    made += 1
                    steps += chain.length
            for node in [each for each in graph if each.op in _LOOPS]:
                reason = rewrite_loop(node)
                if reason:
                    skipped[str(node.outputs[0].name)] = reason
                else:
                    made += 1
            if made:
                drop_dead_code(module)
            for line in list(linear_chains(graph)):
                reason = rewrite_steps(line)
                if not reason:
                    made += 1
                    steps += len(line)
                elif line[0].factor is not None:  # sums alone are everywhere
                    skipped.setdefault(str(line[-1].node.output.name), reason)
        drop_dead_code(module)
        written, rest = read_mixers(module)
        stats: dict[str, int | float] = {
            "recurrences": made, "steps": steps, "attentions": written,
        }  # fmt: skip
        reasons = tuple(Skip(name, f"recurrence: {why}") for name, why in skipped.items())
        return PassResult(made + written > 0, stats, (*reasons, *rest))


def _replace(chain: Chain) -> str:
    """Replaces what reads a chain's states; returns why it does not, or ""."""
    state = chain.steps[0].node.output
    rank = state.rank
    if rank not in (_VECTOR, _MATRIX) or state.dtype is None:
        return "its state is neither a number nor a vector per channel"
    rank_of_parts = rank + 1
    if any(part.of.rank != rank_of_parts for part in (chain.factors, chain.gains)):
        return "its factors and gains have another rank than its states have, with positions"
    final, graph = chain.steps[-1].node, chain.steps[-1].node.graph
    if graph is None:
        raise AssertionError("a step is in a graph")
    found: tuple[Part, list[Node]] | str | None = None
    if rank == _MATRIX:
        found = reads(chain)
        if isinstance(found, str):
            return found
    replaced = [node.output for node in found[1]] if isinstance(found, tuple) else chain.states
    parts = [chain.factors, chain.gains, *([found[0]] if isinstance(found, tuple) else [])]
    first = _behind(replaced[0].producer, parts)
    if first is None:
        return "its tensors are computed between its steps"
    b = Builder(graph, first, final.loc)
    logs = log_of(b, chain.factors.of)
    if logs is None:
        return NO_LOGARITHM
    decay = Part(logs, chain.factors.axis, chain.factors.number)
    B, D, *rest = state.shape or ()
    N, T = (rest[0] if rest else 1), chain.length
    decay_value = _lined(b, decay, rank, (B, D, T, N))
    keys = _lined(b, chain.gains, rank, (B, D, T, N))
    ones = np.ones(1, state.dtype.numpy)
    values = b.op(fill.constant_of_shape, shape=(B, D, T, 1), value=ones)
    start = chain.start
    if start is not None:
        start = b.op(reshaping.reshape, start, shape=(B, D, N, 1))
    queries = b.op(fill.constant_of_shape, shape=(B, D, T, N), value=ones)
    if isinstance(found, tuple):
        queries = _queries(b, found[0], (B, D, T, N))
    out, last = b.multi(
        linear_attention.linear_attention, queries, keys, values, start, decay_value,
        rule="gated", scale=1.0,
    )  # fmt: skip
    shape = (B, D, 1) if isinstance(found, tuple) else (B, D)
    for number, old in enumerate(replaced):
        row = b.op(slicing.slice_, out, starts=(number,), ends=(number + 1,), axes=(2,), steps=(1,))
        old.replace_all_uses_with(b.op(reshaping.reshape, row, shape=shape))
    if isinstance(found, tuple):
        final.output.replace_all_uses_with(b.op(reshaping.reshape, last, shape=(B, D, N)))
    return ""


def _behind(node: Node | None, parts: list[Part]) -> Node | None:
    """Returns the node behind the first result, None where something is computed only later."""
    if node is None or node.next is None:
        return None
    makers = [part.of.producer for part in parts]
    is_known = all(maker is None or maker.order < node.order for maker in makers)
    return node.next if is_known else None


def _lined(b: Builder, part: Part, rank: int, shape: tuple[DimLike, ...]) -> Value:
    """Returns a stepped tensor as [B, D, T, N]."""
    x = part.of
    axes = [axis for axis in range(rank + 1) if axis != part.axis]
    perm = (axes[0], axes[1], part.axis, *axes[2:])
    if perm != tuple(range(rank + 1)):
        x = b.op(reshaping.transpose, x, perm=perm)
    if rank == _VECTOR:
        x = b.op(reshaping.unsqueeze, x, axes=(3,))
    return x if x.shape == shape else b.op(repeating.expand, x, shape=shape)


def _queries(b: Builder, part: Part, shape: tuple[DimLike, ...]) -> Value:
    """Returns what states are read by, [B, T, N] or [B, N, T], for every channel."""
    B, _, T, N = shape
    x = part.of if part.axis == 1 else b.op(reshaping.transpose, part.of, perm=(0, 2, 1))
    lined = b.op(reshaping.reshape, x, shape=(B, 1, T, N))
    return b.op(repeating.expand, lined, shape=shape)
