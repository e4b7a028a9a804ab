"""Linear and hybrid attention in simpler operators, as files hold them, read as one operator again.

Both end in a quotient: the columns of a tensor, sums of values, over its last one, the sum of
weights. From there on everything is a guess: which tensors are queries, keys and features is
decided by comparing the operator with what it replaces, on drawn inputs longer than its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import Dim, symbols_of
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, reshaping, slicing
from regraft.ir.ops.hybrid_attention import MERGES, hybrid_attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.prove import Prover
from regraft.passes.linearization.written_quotients import (
    Parts,
    Quotient,
    condition_of,
    gains_of,
    leaves_of,
    quotient_of,
    split,
    unmasked,
    width,
    window_of,
)
from regraft.passes.protocol import Skip

_LONG = 131
"""Keys that guesses are compared at: more than two blocks or chunks, of usual windows."""
_MOST_LEAVES = 4
"""Tensors that are tried as queries, keys, or features of queries."""


def read_mixers(module: Module) -> tuple[int, list[Skip]]:
    """Replaces what computes linear or hybrid attention; returns how often, and what stays why."""
    prover, made, skipped = Prover(), 0, []
    for graph in graphs_of(module.graph):
        for node in [each for each in graph if each.op is arithmetic.div]:
            quotient = quotient_of(node)
            if quotient is None:
                continue
            reason = _replaced(quotient, prover)
            if reason:
                skipped.append(Skip(str(node.output.name), f"linear attention: {reason}"))
            else:
                made += 1
    if made:
        drop_dead_code(module)
    return made, skipped


def _joined(b: Builder, parts: Parts) -> Value:
    return parts[0] if len(parts) == 1 else b.op(slicing.concat, *parts, axis=3)


def _replaced(place: Quotient, prover: Prover) -> str:
    """Replaces a quotient by the first guess that is what it computes; returns why not, or ""."""
    guesses = _hybrids if place.parts[0] else _linears
    graph, reason = place.node.graph, "its queries or keys are not found"
    if graph is None:
        raise AssertionError("a division is in a graph")
    length = place.shape[2]
    names = symbols_of((length,)) if isinstance(length, Dim) else ()
    least = {symbol.name: _LONG for symbol in names}
    for guess in guesses(place):
        scratch = Graph(graph.scope)
        made = guess.build(Builder(scratch))
        unproved = prover.num_unproved
        reason = prover.refute(place.node.output, made, scratch, guess.ends, least)
        for node in reversed(scratch):
            scratch.erase(node)
        if prover.num_unproved > unproved:
            reason = prover.unproved[str(place.node.output.name)]
        if not reason:
            new = guess.build(Builder(graph, place.node, place.node.loc))
            place.node.output.replace_all_uses_with(new)
            return ""
    return reason


# -- linear attention ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Linear:
    """Linear attention over the sum of its weights."""

    place: Quotient
    q: Value
    k: Value
    v: Parts
    is_causal: bool

    @property
    def ends(self) -> list[Value]:
        """What is drawn."""
        return list(dict.fromkeys((self.q, self.k, *self.v)))

    def build(self, b: Builder) -> Value:
        """Builds it."""
        out, _ = b.multi(
            linear_attention, self.q, self.k, _joined(b, self.v), rule="linear", scale=1.0,
            normalizer="sum", epsilon=self.place.epsilon, kv_groups=_groups(self.q, self.k),
            causal=self.is_causal,
        )  # fmt: skip
        return out


def _linears(place: Quotient) -> Iterator[_Linear]:
    _, v = place.parts
    leaves = list(dict.fromkeys(leaf for leaf, _ in leaves_of(place)))
    if len(leaves) > _MOST_LEAVES:
        return
    for is_causal, q, k in product((True, False), leaves, leaves):
        alike = (q.shape or ())[3] == (k.shape or ())[3] and (q is not k or len(leaves) == 1)
        heads = (q.shape or ())[1] == place.shape[1] and (k.shape or ())[1] == place.kv_heads
        if alike and heads and _groups(q, k):
            yield _Linear(place, q, k, v, is_causal)


def _groups(q: Value, k: Value) -> int:
    """Returns how many heads of queries share one of keys, 0 where that is not known."""
    heads, kv_heads = (q.shape or ())[1], (k.shape or ())[1]
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % max(1, kv_heads):
        return 0
    return heads // kv_heads


# -- hybrid attention ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hybrid:
    """A window of softmax beside linear attention."""

    place: Quotient
    q: Value
    fq: Value
    scale: float
    gain: Value | None
    window: int
    merge: str

    @property
    def _seen(self) -> Value | None:
        """The condition that says which keys are there."""
        return condition_of(self.place.line.inputs[-1])

    @property
    def _operands(self) -> tuple[Parts, Parts, Parts]:
        """Keys, their features, values."""
        before, v = self.place.parts
        found = split(before, width(self.fq))
        assert found is not None, "a guess fits what is lined up"
        k, fk, v = (tuple(unmasked(x, self._seen) for x in parts) for parts in (*found, v))
        return k, fk, v

    @property
    def ends(self) -> list[Value]:
        """What is drawn."""
        k, fk, v = self._operands
        rest = [x for x in (self._seen, self.gain) if x is not None and not is_constant(x)]
        return list(dict.fromkeys((self.q, self.fq, *k, *fk, *v, *rest)))

    def build(self, b: Builder) -> Value:
        """Builds it."""
        k, fk, v = (_joined(b, parts) for parts in self._operands)
        B, _, T, _ = k.shape or ()
        seen, gain = self._seen, self.gain
        if seen is not None and seen.shape != (B, T):
            seen = b.op(reshaping.reshape, seen, shape=(B, T))
        if gain is not None:
            gain = b.op(reshaping.reshape, gain, shape=((self.q.shape or ())[1],))
        out, *_ = b.multi(
            hybrid_attention, self.q, k, v, self.fq, fk, gain, seen, scale=self.scale,
            window=self.window, kv_groups=_groups(self.q, k), merge=self.merge,
            epsilon=self.place.epsilon,
        )  # fmt: skip
        return out


def _hybrids(place: Quotient) -> Iterator[_Hybrid]:
    window, (before, _) = window_of(place), place.parts
    leaves = dict(leaves_of(place))
    gains: list[Value | None] = [*dict.fromkeys(gains_of(place))] or [None]
    if not window or len(leaves) > _MOST_LEAVES:
        return
    for (q, scale), (fq, factor), gain, merge in product(
        leaves.items(), leaves.items(), gains, MERGES[::-1]
    ):
        parts = split(before, width(fq))
        fits = parts is not None and sum(map(width, parts[0])) == width(q)
        if fits and factor == 1 and _groups(q, before[0]) and (q is not fq or len(leaves) == 1):
            yield _Hybrid(place, q, fq, scale, gain, window, merge)
