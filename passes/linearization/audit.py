"""What a linearized model really does: weights beside the teacher's, and what its branches are for.

A hybrid can be as good as its teacher while its linear branch is worth nothing. Nothing is believed
here that is not taken away once: both branches, the window alone, the linear one alone, none.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.dims import Dim
from regraft.ir.errors import UsageError
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.rewrite import Rewriter, rewrite
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.check.runners import Runner
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.linearization.attention_weights import scores_of_mixer, weights_of_mixer
from regraft.passes.linearization.head_parts import HeadsOf, parts_of_layers
from regraft.passes.recovery.data import Batch

Array = np.ndarray[Any, Any]
MakeRunner = Callable[[Module], Runner]
"""Gives what runs a module: feeds by name in, outputs by name out."""

MIXERS = (attention, linear_attention, hybrid_attention)
_LEAST = 1e-12
_BYTES = 4
"""Of a number, f32, in states and caches."""


class Ablation(enum.Enum):
    """What is left of hybrid attention."""

    BOTH = "both"
    WINDOW = "window"
    LINEAR = "linear"
    NONE = "none"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer beside the teacher's, each model on its own stream.

    Attributes:
        number: Which attention of the model it is, from 0.
        kind: `softmax`, `linear` or `hybrid`; two of them where heads differ.
        kl: Mean over rows of KL(teacher's weights || own), nats, by head.
        error: Squared error of the results over the squares of the teacher's.
        spikiness: Largest weight of a row, mean, by head.
        teacher_spikiness: The teacher's.
        monotonicity: Rank correlation of products of queries and keys with weights, by head.
        state_bytes: Of one sequence, at any length; None where there is a cache alone.
        kv_bytes_per_token: Of the teacher's cache, where it has one.
        kept_kv_bytes_per_token: Of the cache of heads that stay a softmax.
    """

    number: int
    kind: str
    kl: tuple[float, ...]
    error: float
    spikiness: tuple[float, ...]
    teacher_spikiness: tuple[float, ...]
    monotonicity: tuple[float, ...]
    state_bytes: int | None
    kv_bytes_per_token: int
    kept_kv_bytes_per_token: int


def mixers(module: Module) -> list[Node]:
    """Returns the operators that mix tokens by keys and queries, in order."""
    return [node for graph in graphs_of(module.graph) for node in graph if node.op in MIXERS]


def ablated(module: Module, kept: Ablation) -> Module:
    """Returns a copy whose hybrids have some of their branches alone."""
    made = module.clone()
    plan = Plan()
    for node in mixers(made):
        if node.op is hybrid_attention:
            plan.add(node, "ablate", _with_branches(kept))
    rewrite(made, plan.rules(), start=plan.in_order())
    return made


def _with_branches(kept: Ablation) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        attrs = {**node.attrs, "branches": str(kept)}
        rw.replace(node, *rw.builder(node).multi(hybrid_attention, *node.inputs, **attrs))

    return apply


def layer_figures(
    teacher: Module, student: Module, batches: Sequence[Batch], runner: MakeRunner
) -> list[LayerFigures]:
    """Returns every layer of the student beside the teacher's.

    Args:
        teacher: The module before, recognized.
        student: The module behind it.
        batches: What both run on.
        runner: Runs modules.

    Raises:
        UsageError: When the modules have not the same number of layers.
    """
    old, own_nodes = mixers(teacher), mixers(student)
    new = parts_of_layers(old, own_nodes)
    if len(old) != len(new):
        raise UsageError(
            f"audit: {len(new)} layers mix tokens, the original has {len(old)}",
            hint="give the module that was linearized, with attention recognized",
        )
    sums: list[list[Array]] = [[] for _ in new]
    runs = [_operands_of(each, runner) for each in (teacher, student)]
    for batch in batches:
        theirs, own = (run(batch) for run in runs)
        given = dict(zip(own_nodes, own, strict=True))
        for number, (before, parts) in enumerate(zip(old, new, strict=True)):
            sums[number].append(_compared(before, theirs[number], parts, given))
    return [
        _layer(number, parts, before, np.mean(rows, axis=0))
        for number, (parts, before, rows) in enumerate(zip(new, old, sums, strict=True))
    ]


def _operands_of(module: Module, runner: MakeRunner) -> Callable[[Batch], list[dict[str, Array]]]:
    """Returns what gives the operands and the result of every mixer of a module."""
    nodes = mixers(module)
    wanted: dict[str, Value] = {}
    for number, node in enumerate(nodes):
        for operand, value in zip(node.op.operands, node.inputs, strict=True):
            if value is not None:
                wanted[f"{number} {operand.name}"] = value
        wanted[f"{number} out"] = node.outputs[0]
    run = runner(with_outputs(module, wanted))

    def of(batch: Batch) -> list[dict[str, Array]]:
        found = run({name: batch[name] for name in module.input_types if name in batch})
        parts: list[dict[str, Array]] = [{} for _ in nodes]
        for key, array in found.items():
            number, _, name = key.partition(" ")
            parts[int(number)][name] = np.asarray(array)
        return parts

    return of


def _compared(
    old: Node, theirs: dict[str, Array], parts: Sequence[HeadsOf], given: Mapping[Node, Any]
) -> Array:
    """Returns [4, H]: KL, spikiness of both, monotonicity; and the error as a fifth row."""
    whole = weights_of_mixer(old, theirs)
    found = np.zeros((5, whole.shape[1]))
    squares = 0.0
    for part in parts:
        own, heads = given[part.node], list(part.heads)
        before, after = whole[:, heads], weights_of_mixer(part.node, own)
        counted = before.sum(-1) > 0  # rows that see no key have nothing to compare
        logs = np.log(np.maximum(before, _LEAST)) - np.log(np.maximum(after, _LEAST))
        found[0, heads] = _mean_rows((before * logs).sum(-1), counted)
        found[1, heads], found[2, heads] = (
            _mean_rows(each.max(-1), counted) for each in (after, before)
        )
        found[3, heads] = _rank_correlation(scores_of_mixer(part.node, own), after, counted)
        squares += float(np.square(own["out"] - theirs["out"][:, heads]).sum())
    found[4] = squares / np.square(theirs["out"]).sum()
    return found


def _mean_rows(rows: Array, counted: Array) -> Array:
    kept = np.where(counted, rows, 0).sum((0, 2))
    return np.asarray(kept / np.maximum(counted.sum((0, 2)), 1))


def _rank_correlation(scores: Array, weights: Array, counted: Array) -> Array:
    """Returns Spearman's coefficient of scores and weights over the keys that rows see, by head."""
    B, H, S, _ = weights.shape
    found = np.zeros((B, H, S))
    for place in np.ndindex(B, H, S):
        seen = weights[place] != 0
        if counted[place] and seen.sum() > 2:
            ranks = [np.argsort(np.argsort(x[place][seen])) for x in (scores, weights)]
            found[place] = np.corrcoef(ranks[0], ranks[1])[0, 1]
    enough = counted & ((weights != 0).sum(-1) > 2)
    return _mean_rows(found, enough)


_KINDS = {attention: "softmax", linear_attention: "linear", hybrid_attention: "hybrid"}


def _layer(number: int, parts: Sequence[HeadsOf], old: Node, rows: Array) -> LayerFigures:
    kl, own, theirs, monotonic, error = (tuple(map(float, row)) for row in rows)
    kinds = dict.fromkeys(_KINDS[part.node.op] for part in parts)
    states = [size for part in parts if (size := state_bytes(part.node)) is not None]
    kept = sum(_cache_bytes(part.node) for part in parts if part.node.op is attention)
    return LayerFigures(
        number, " + ".join(kinds), kl, error[0], own, theirs, monotonic,
        sum(states) if states else None, _cache_bytes(old) if old.op is attention else 0, kept,
    )  # fmt: skip


def _cache_bytes(node: Node) -> int:
    """Returns the bytes per token of the keys and values of an attention."""
    found = 0
    for value in node.inputs[1:3]:
        heads, _, channels = (0, 0, 0) if value is None else (value.shape or (0, 0, 0, 0))[1:]
        if isinstance(heads, int) and isinstance(channels, int):
            found += _BYTES * heads * channels
    return found


def state_bytes(node: Node) -> int | None:
    """Returns the bytes of a mixer's states for one sequence, f32; None for a cache."""
    if node.op is attention:
        return None
    total = 0
    for value in node.outputs[1:]:
        size = _BYTES
        for dim in (value.shape or ())[1:]:
            if isinstance(dim, Dim):
                return None
            size *= dim
        total += size
    return total
