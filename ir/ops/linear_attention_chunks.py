"""Linear attention in standard operators: chunks of positions at once, or one position at a time.

Inside a chunk of C positions the products of queries and keys are a C x C matrix; between chunks a
state of one D x E matrix per head is handed on. What a chunk adds to the states of all later ones
is one product with an N x N matrix of decays, so that nothing runs position by position. Delta
rules turn the state by a matrix per position; their chunks follow each other in a scan.

Source: Yang et al., Gated Linear Attention, 2024; Yang et al., Gated Delta Networks, 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Value
from regraft.ir.ops import (
    arithmetic,
    control,
    cumulative,
    fill,
    functions,
    linalg,
    logical,
    reduce,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.types import DType

_CHUNK, _CHUNK_PER_CHANNEL, _CHUNK_DELTA = 64, 16, 32
"""Positions per chunk: decays per channel need C x C x D numbers, delta rules an inverse."""


@dataclass(frozen=True, slots=True)
class Call:
    """Operands in the type that is computed in.

    Attributes:
        b: Where to build.
        q: [B, H, G, T, D].
        k: [B, H, T, D].
        v: [B, H, T, E].
        state: [B, H, D, E].
        decay: Logarithms, [B, H, T, D or 1], or None.
        beta: [B, H or 1, T, 1], or None.
    """

    b: Builder
    q: Value
    k: Value
    v: Value
    state: Value
    decay: Value | None
    beta: Value | None

    @property
    def sizes(self) -> tuple[DimLike, DimLike, DimLike, DimLike, DimLike, DimLike]:
        """B, H, G, T, D, E."""
        B, H, G, T, D = self.q.shape or ()
        return B, H, G, T, D, (self.v.shape or ())[3]

    @property
    def per_channel(self) -> bool:
        """Whether decays differ from channel to channel."""
        return self.decay is not None and (self.decay.shape or ())[3] != 1

    def times(self, x: Value, y: Value) -> Value:
        """Returns a matrix product."""
        return self.b.op(linalg.matmul, x, y)

    def mul(self, x: Value, y: Value) -> Value:
        """Returns a product, element by element."""
        return self.b.op(arithmetic.mul, x, y)

    def flipped(self, x: Value) -> Value:
        """Returns the last two axes exchanged."""
        last = (x.rank or 0) - 1
        return self.b.op(reshaping.transpose, x, perm=(*range(last - 1), last, last - 1))

    def exp(self, x: Value) -> Value:
        """Returns the exponential."""
        return self.b.op(functions.exp, x)

    def at(self, x: Value, axis: int) -> Value:
        """Returns `x` with one more axis of size 1."""
        return self.b.op(reshaping.unsqueeze, x, axes=(axis,))

    def number(self, value: object) -> Value:
        """Returns a constant of the type that is computed in."""
        return self.b.constant(value, self.q.dtype)


def one_step(c: Call) -> tuple[Value, Value]:
    """Returns result [B, H, G, 1, E] and state of one position."""
    b, S = c.b, c.state
    if c.decay is not None:
        S = c.mul(S, c.exp(c.flipped(c.decay)))
    value = c.v
    if c.beta is not None:
        value = c.mul(c.beta, b.op(arithmetic.sub, value, c.times(c.k, S)))
    S = b.op(arithmetic.add, S, c.times(c.flipped(c.k), value))
    return c.times(c.q, c.at(S, 2)), S


def in_chunks(c: Call, chunk_size: int) -> tuple[Value, Value]:
    """Returns result [B, H, G, T, E] and state, `chunk_size` positions at a time (0: as suits)."""
    usual = _CHUNK_PER_CHANNEL if c.per_channel else _CHUNK_DELTA if c.beta else _CHUNK
    B, H, G, T, _, E = c.sizes
    C = chunk_size or usual
    if isinstance(T, int):
        C = max(1, min(C, T))
    split = _split(c, C)
    made, state = _delta(split, C) if c.beta is not None else _added(split, C)
    N = (split.k.shape or ())[2]
    made = c.b.op(reshaping.transpose, made, perm=(0, 1, 3, 2, 4, 5))
    flat = c.b.op(reshaping.reshape, made, shape=(B, H, G, N * C, E))
    if N * C != T:
        flat = c.b.op(slicing.slice_, flat, starts=(0,), ends=(T,), axes=(3,), steps=(1,))
    return flat, state


def _split(c: Call, C: int) -> Call:
    """Returns operands with positions as [N, C], padded by positions that change nothing.

    q is [B, H, N, G, C, D], the others [.., N, C, ..].
    """
    b, T = c.b, c.sizes[3]
    N = (T + (C - 1)) // C
    pad = N * C - T

    def split(x: Value | None, axis: int) -> Value | None:
        if x is None:
            return None
        shape = x.shape or ()
        if shape[axis] == 1 and T != 1:  # one decay for all positions
            x = b.op(repeating.expand, x, shape=(*shape[:axis], T, *shape[axis + 1 :]))
            shape = x.shape or ()
        if pad != 0:
            zeros = np.zeros(1, (x.dtype or DType.F32).numpy)
            more = (*shape[:axis], pad, *shape[axis + 1 :])
            x = b.op(slicing.concat, x, b.op(fill.constant_of_shape, shape=more, value=zeros),
                     axis=axis)  # fmt: skip
        return b.op(reshaping.reshape, x, shape=(*shape[:axis], N, C, *shape[axis + 1 :]))

    q = split(c.q, 3)
    if q is not None:
        q = b.op(reshaping.transpose, q, perm=(0, 1, 3, 2, 4, 5))
    k, v = split(c.k, 2), split(c.v, 2)
    if q is None or k is None or v is None:
        raise AssertionError("linear attention has queries, keys and values")
    return Call(b, q, k, v, c.state, split(c.decay, 2), split(c.beta, 2))


def _lower(c: Call, size: DimLike, strict: bool = False) -> Value:
    """Returns which of [size, size] lie on or below the diagonal, bool."""
    places = c.b.op(fill.range_, start=0, limit=size, delta=1, dtype=DType.I64)
    rows = c.at(places, 1)
    op = logical.greater if strict else logical.greater_or_equal
    return c.b.op(op, rows, places)


def _factors(c: Call, sums: Value, below: Value) -> Value:
    """Returns exp(sums[i] - sums[j]) where `below`, else 0; sums [.., C]: [.., C, C]."""
    difference = c.b.op(
        arithmetic.sub, c.at(sums, sums.rank or 0), c.at(sums, (sums.rank or 1) - 1)
    )
    # exponents above the diagonal are positive and could overflow
    kept = c.b.op(logical.where, below, difference, c.number(-np.inf))
    return c.exp(kept)


def _added(c: Call, C: int) -> tuple[Value, Value]:
    """Rules without delta: within chunks, between chunks, no loop."""
    b = c.b
    below = _lower(c, C)
    keys, q = c.k, c.q
    gates: Value | None = None
    if c.decay is None:
        within = c.times(q, c.at(c.flipped(c.k), 3))
        zero = c.number(0)
        within = b.op(logical.where, below, within, zero)
    else:
        sums = b.op(cumulative.cumsum, c.decay, axis=3)  # [B, H, N, C, D or 1]
        ends = b.op(
            slicing.slice_, sums, starts=(C - 1,), ends=(C,), axes=(3,), steps=(1,)
        )  # [B, H, N, 1, D or 1]
        if c.per_channel:
            apart = _factors(c, c.flipped(sums), below)  # [B, H, N, D, C, C]
            apart = b.op(reshaping.transpose, apart, perm=(0, 1, 2, 4, 5, 3))
            weighed = c.mul(apart, c.at(c.k, 3))  # of [i, j, d]: k[j, d] exp(…)
            within = c.times(c.at(weighed, 3), c.at(q, 6))  # [B, H, N, G, C, C, 1]
            within = b.op(reshaping.squeeze, within, axes=(6,))
        else:
            flat = b.op(reshaping.squeeze, sums, axes=(4,))
            within = c.mul(c.times(q, c.at(c.flipped(c.k), 3)), c.at(_factors(c, flat, below), 3))
        keys = c.mul(c.k, c.exp(b.op(arithmetic.sub, ends, sums)))
        q = c.mul(q, c.at(c.exp(sums), 3))
        gates = ends
    made = c.times(within, c.at(c.v, 3))
    gained = c.times(c.flipped(keys), c.v)  # [B, H, N, D, E]
    before, last = _states(c, gained, gates)
    return b.op(arithmetic.add, made, c.times(q, c.at(before, 3))), last


def _states(c: Call, gained: Value, gates: Value | None) -> tuple[Value, Value]:
    """Returns the states before each chunk [B, H, N, D, E] and after the last one."""
    b = c.b
    first = c.at(c.state, 2)
    if gates is None:
        before = b.op(cumulative.cumsum, gained, axis=2, exclusive=True)
        total = b.op(reduce.reduce_sum, gained, axes=(2,), keepdims=False)
        return b.op(arithmetic.add, before, first), b.op(arithmetic.add, total, c.state)
    B, H, N, D, E = gained.shape or ()
    sums = b.op(cumulative.cumsum, gates, axis=2)  # [B, H, N, 1, D or 1]
    earlier = b.op(arithmetic.sub, sums, gates)
    width = (gates.shape or ())[4]
    line = (0, 1, 4, 3, 2)
    after_, before_ = (
        b.op(reshaping.squeeze, b.op(reshaping.transpose, x, perm=line), axes=(3,))
        for x in (sums, earlier)
    )  # [B, H, D or 1, N]
    difference = b.op(arithmetic.sub, c.at(before_, 4), c.at(after_, 3))
    strict = _lower(c, N, strict=True)
    decays = c.exp(b.op(logical.where, strict, difference, c.number(-np.inf)))  # [.., N, N]
    if width == 1:
        flat = b.op(reshaping.reshape, gained, shape=(B, H, 1, N, D * E))
        before = b.op(reshaping.reshape, c.times(decays, flat), shape=(B, H, N, D, E))
    else:
        lined = b.op(reshaping.transpose, gained, perm=(0, 1, 3, 2, 4))  # [B, H, D, N, E]
        before = b.op(reshaping.transpose, c.times(decays, lined), perm=(0, 1, 3, 2, 4))
    kept = c.flipped(c.exp(earlier))  # [B, H, N, D or 1, 1]
    before = b.op(arithmetic.add, before, c.mul(kept, first))
    spans = {"starts": (N - 1,), "ends": (N,), "axes": (2,), "steps": (1,)}
    end, gain, gate = (b.op(slicing.slice_, x, **spans) for x in (before, gained, gates))
    last = b.op(arithmetic.add, c.mul(end, c.flipped(c.exp(gate))), gain)
    return before, b.op(reshaping.squeeze, last, axes=(2,))


def _delta(c: Call, C: int) -> tuple[Value, Value]:
    """Delta rules, decays per position at most: chunk by chunk in a scan.

    U - W S is what positions write once each has seen what those before it wrote; W and U come
    from the inverse of a triangular matrix.
    """
    b, beta = c.b, c.beta
    if beta is None:
        raise AssertionError("a delta rule has rates")
    below = _lower(c, C)
    keys = c.flipped(c.k)
    alike = c.times(c.mul(c.k, beta), keys)  # [B, H, N, C, C]
    within = c.times(c.q, c.at(keys, 3))  # [B, H, N, G, C, C]
    write, read, hold = c.mul(c.k, beta), c.q, c.k
    gate: Value | None = None
    if c.decay is None:
        within = b.op(logical.where, below, within, c.number(0))
    else:
        sums = b.op(cumulative.cumsum, c.decay, axis=3)
        flat = b.op(reshaping.squeeze, sums, axes=(4,))
        factors = _factors(c, flat, below)
        alike, within = c.mul(alike, factors), c.mul(within, c.at(factors, 3))
        gate = b.op(slicing.slice_, sums, starts=(C - 1,), ends=(C,), axes=(3,), steps=(1,))
        write, read = c.mul(write, c.exp(sums)), c.mul(read, c.at(c.exp(sums), 3))
        hold = c.mul(c.k, c.exp(b.op(arithmetic.sub, gate, sums)))
        gate = c.exp(gate)
    inverse = _inverse(c, alike, C)
    W, U = c.times(inverse, write), c.times(inverse, c.mul(c.v, beta))
    scanned = [x for x in (read, within, W, U, c.flipped(hold), gate) if x is not None]
    step = Graph(b.graph.scope)
    s = Builder(step)
    state = step.add_input("state", c.state.type)
    r, m, w, u, h, *g = (step.add_input(None, control.slice_type(x.type, 2)) for x in scanned)
    new = s.op(arithmetic.sub, u, s.op(linalg.matmul, w, state))
    seen = s.op(linalg.matmul, r, s.op(reshaping.unsqueeze, state, axes=(2,)))
    own = s.op(linalg.matmul, m, s.op(reshaping.unsqueeze, new, axes=(2,)))
    after = s.op(arithmetic.mul, state, g[0]) if g else state
    step.add_output("new_state", s.op(arithmetic.add, after, s.op(linalg.matmul, h, new)))
    step.add_output("out", s.op(arithmetic.add, seen, own))
    final, out = b.node(
        control.scan, c.state, *scanned, num_outputs=2, bodies=(step,),
        num_carried=1, num_scanned=len(scanned), num_captures=0,
        input_axes=(2,) * len(scanned), input_reversed=(0,) * len(scanned),
        output_axes=(2,), output_reversed=(0,),
    ).outputs  # fmt: skip
    return out, final


def _inverse(c: Call, lower: Value, C: int) -> Value:
    """Returns (I + A)^-1 [.., C, C], where A is what `lower` has below the diagonal.

    Blocks on the diagonal double: with X the inverses of two neighbours and L what couples them,
    their common inverse is X - X L X. The product (I - A)(I + A^2)(I + A^4)… needs as many steps,
    but powers of A grow like binomials where keys are alike, and their sum loses every digit.
    """
    rows, columns = np.indices((C, C))
    inverse, size = c.number(np.eye(C)), 1
    while size < C:
        couples = (rows // size == columns // size + 1) & (columns // size % 2 == 0)
        held = c.b.op(logical.where, c.b.constant(couples, DType.BOOL), lower, c.number(0))
        moved = held if size == 1 else c.times(c.times(inverse, held), inverse)
        inverse, size = c.b.op(arithmetic.sub, inverse, moved), 2 * size
    return inverse
