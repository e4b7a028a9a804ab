"""h_t = a_t h_(t-1) + u_t over tensors of all steps, written as the operator `linear_attention`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, fill, linalg, linear_attention, repeating, reshaping
from regraft.ir.types import DType


@dataclass(frozen=True, slots=True)
class Outer:
    """Gains that are outer products of keys and values, of states [..., D, E].

    Attributes:
        keys: [T, ..., D, 1].
        values: [T, ..., 1, E].
    """

    keys: Value
    values: Value


def outer_of(gains: Value, decay: Value | None) -> Outer | None:
    """Returns the keys and values of gains [T, ..., D, E], None where they are no such product.

    The decay has to be the same for all values of a key.
    """
    node = gains.producer
    if node is None or (gains.rank or 0) < 4 or node.op not in (arithmetic.mul, linalg.matmul):
        return None
    if decay is not None and (decay.shape or (0,))[-1] != 1:
        return None
    for keys, values in (node.inputs[:2], node.inputs[1::-1]):
        if keys is None or values is None or keys.rank != gains.rank or values.rank != gains.rank:
            continue
        is_column, is_row = (keys.shape or ())[-1] == 1, (values.shape or ())[-2] == 1
        if is_column and is_row:
            return Outer(keys, values)
        if node.op is linalg.matmul:
            break
    return None


def states_of(
    b: Builder, decay: Value | None, gains: Value, start: Value | None,
    shape: tuple[DimLike, ...], length: DimLike,
) -> tuple[Value, Value]:  # fmt: skip
    """Returns the states behind all steps, [T, ...], and the last: every number is a channel.

    Args:
        b: Builds.
        decay: Logarithms of the factors, broadcasts to [T, ...]; None where they are 1.
        gains: What is added, broadcasts to [T, ...].
        start: The state before the first step; None for zeros.
        shape: Of a state.
        length: Steps.
    """
    dtype = gains.dtype or DType.F32
    B, D, T = (shape[0] if shape else 1), product(shape[1:]), length

    def lined(x: Value) -> Value:
        whole = x if x.shape == (T, *shape) else b.op(repeating.expand, x, shape=(T, *shape))
        flat = b.op(reshaping.reshape, whole, shape=(T, B, D, 1))
        return b.op(reshaping.transpose, flat, perm=(1, 2, 0, 3))

    ones = b.op(fill.constant_of_shape, shape=(B, D, T, 1), value=np.ones(1, dtype.numpy))
    before = None if start is None else b.op(reshaping.reshape, start, shape=(B, D, 1, 1))
    rule = "linear" if decay is None else "gated"
    out, last = b.multi(
        linear_attention.linear_attention, ones, lined(gains), ones, before,
        None if decay is None else lined(decay), rule=rule, scale=1.0,
    )  # fmt: skip
    steps = b.op(reshaping.transpose, out, perm=(2, 0, 1, 3))
    return (
        b.op(reshaping.reshape, steps, shape=(T, *shape)),
        b.op(reshaping.reshape, last, shape=shape),
    )


def read_states(
    b: Builder, outer: Outer, queries: Value, decay: Value | None, start: Value | None,
    shape: tuple[DimLike, ...], length: DimLike,
) -> tuple[Value, Value]:  # fmt: skip
    """Returns what queries read of matrices of states, [T, ..., E], and the last state.

    Args:
        b: Builds.
        outer: Keys and values of the gains.
        queries: [T, ..., D].
        decay: Logarithms of the factors, [T, ..., D or 1, 1]; None where they are 1.
        start: The state before the first step; None for zeros.
        shape: Of a state, [..., D, E].
        length: Steps.
    """
    *lead, D, E = shape
    B, H, T = (lead[0] if lead else 1), product(lead[1:]), length

    def lined(x: Value, size: DimLike) -> Value:
        wanted = (T, *lead, size)
        flat = b.op(reshaping.reshape, x, shape=((x.shape or ())[0], *_lead(x), size))
        whole = flat if flat.shape == wanted else b.op(repeating.expand, flat, shape=wanted)
        heads = b.op(reshaping.reshape, whole, shape=(T, B, H, size))
        return b.op(reshaping.transpose, heads, perm=(1, 2, 0, 3))

    before = None if start is None else b.op(reshaping.reshape, start, shape=(B, H, D, E))
    gates = None if decay is None else lined(decay, (decay.shape or ())[-2])
    out, last = b.multi(
        linear_attention.linear_attention,
        b.op(reshaping.transpose, b.op(reshaping.reshape, queries, shape=(T, B, H, D)),
             perm=(1, 2, 0, 3)),
        lined(outer.keys, D), lined(outer.values, E), before, gates,
        rule="linear" if decay is None else "gated", scale=1.0,
    )  # fmt: skip
    steps = b.op(reshaping.transpose, out, perm=(2, 0, 1, 3))
    return (
        b.op(reshaping.reshape, steps, shape=(T, *lead, E)),
        b.op(reshaping.reshape, last, shape=shape),
    )


def _lead(x: Value) -> tuple[DimLike, ...]:
    return (x.shape or ())[1:-2]
