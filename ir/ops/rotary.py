"""Rotary position embedding: pairs of channels turn by an angle that depends on the position."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike, exactdiv
from regraft.ir.graph import Node, Value
from regraft.ir.ops import arithmetic, gathering, repeating, reshaping, slicing
from regraft.ir.ops.shapes import operands_of, same_size
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.types import Type

Array = np.ndarray[Any, Any]


def _rotated(node: Node, size: DimLike) -> DimLike:
    rotary_size = node.attrs["rotary_size"]
    return size if rotary_size is None else rotary_size


def _axes(node: Node) -> str | None:
    x, cos, _ = operands_of(node, 3)
    positions = node.inputs[3]
    if x.shape is None or cos.shape is None:
        return None
    # halves: channel r turns with channel r + R/2; interleaved: 2 r with 2 r + 1
    pair = "(r two!)" if node.attrs["interleaved"] else "(two! r)"
    turn = "r"
    if _rotated(node, x.shape[-1]) != x.shape[-1]:
        pair, turn = "d!", "r!"
    if positions is not None:
        return f"b h s {pair}, p! {turn}, p! {turn}, b? s -> b h s {pair}"
    table = f"s {turn}" if len(cos.shape) == 2 else f"b? s {turn}"
    return f"b h s {pair}, {table}, {table}, . -> b h s {pair}"


def _infer(node: Node) -> Type:
    x, cos, sin = operands_of(node, 3)
    if x.rank not in (None, 4):
        raise node.error(
            f"`x` has rank {x.rank}", hint="the layout is [batch, heads, length, size]"
        )
    ranks = (2, 3) if node.inputs[3] is None else (2,)
    for table in (cos, sin):
        if table.rank not in (None, *ranks):
            raise node.error(f"a table of angles has rank {table.rank}, expected {ranks}")
        if table.shape is not None and x.shape is not None:
            half = exactdiv(_rotated(node, x.shape[3]), 2)
            same_size(node, table.shape[-1], half, "the angles and half of the rotated channels")
    return x.type


def _eval(c: Any, x: Array, cos: Array, sin: Array, positions: Array | None) -> Array:
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    size = c.attrs["rotary_size"] or x.shape[-1]
    half = size // 2
    if c.attrs["interleaved"]:
        first, second = slice(0, size, 2), slice(1, size, 2)
    else:
        first, second = slice(0, half), slice(half, size)
    # [B, S, R/2] -> [B, 1, S, R/2]; [S, R/2] broadcasts as it is
    cos, sin = (t[:, None] if t.ndim == 3 else t for t in (cos, sin))
    a, b = x[..., first], x[..., second]
    out = x.copy()
    out[..., first] = cos * a - sin * b
    out[..., second] = sin * a + cos * b
    return out


def _flops(node: Node) -> DimLike | None:
    shape = operands_of(node, 1)[0].shape
    if shape is None:
        return None
    B, H, S, D = shape
    return 3 * _rotated(node, D) * B * H * S  # two products and a sum per channel


def _part(b: Builder, x: Value, start: DimLike, end: DimLike) -> Value:
    return b.op(slicing.slice_, x, starts=(start,), ends=(end,), axes=(3,), steps=(1,))


def _body(node: Node, b: Builder) -> Value:
    x, cos, sin = operands_of(node, 3)
    positions = node.inputs[3]
    if x.shape is None or cos.rank is None:
        raise AssertionError("the body of rotary_embedding needs shapes")
    size = _rotated(node, x.shape[3])
    if node.attrs["interleaved"]:
        cos, sin = (_each_twice(b, table) for table in (cos, sin))  # constants where the tables are
    if positions is not None:
        cos, sin = (b.op(gathering.gather, t, positions, axis=0) for t in (cos, sin))
    if cos.rank == 3:
        cos, sin = (b.op(reshaping.unsqueeze, t, axes=(1,)) for t in (cos, sin))
    if node.attrs["interleaved"]:
        turned = x if size == x.shape[3] else _part(b, x, 0, size)
        parts = [_turned_neighbours(b, turned, cos, sin)]
    else:
        parts = _turned_halves(b, x, cos, sin, size)
    if size != x.shape[3]:
        parts.append(_part(b, x, size, x.shape[3]))
    return parts[0] if len(parts) == 1 else b.op(slicing.concat, *parts, axis=3)


def _turned_halves(b: Builder, x: Value, cos: Value, sin: Value, size: DimLike) -> list[Value]:
    half = exactdiv(size, 2)
    first, second = _part(b, x, 0, half), _part(b, x, half, size)
    mul = arithmetic.mul
    return [
        b.op(arithmetic.sub, b.op(mul, first, cos), b.op(mul, second, sin)),
        b.op(arithmetic.add, b.op(mul, first, sin), b.op(mul, second, cos)),
    ]


def _turned_neighbours(b: Builder, x: Value, cos: Value, sin: Value) -> Value:
    """Multiplies x and its exchanged pairs by full tables, which all layers share.

    Four products by half tables, joined again, are half as many nodes more.
    """
    if x.shape is None:
        raise AssertionError("the body of rotary_embedding needs shapes")
    half = exactdiv(x.shape[3], 2)
    pairs = b.op(reshaping.reshape, x, shape=(*x.shape[:3], half, 2))  # [B, H, S, R/2, 2]
    first, second = b.multi(slicing.split, pairs, num_outputs=2, axis=4, sizes=(1, 1))
    exchanged = b.op(slicing.concat, b.op(arithmetic.neg, second), first, axis=4)
    exchanged = b.op(reshaping.reshape, exchanged, shape=x.shape)
    return b.op(
        arithmetic.add,
        b.op(arithmetic.mul, x, cos),
        b.op(arithmetic.mul, exchanged, sin),
    )


def _each_twice(b: Builder, table: Value) -> Value:
    """Returns a table [..., R/2] as [..., R] with every angle twice."""
    if table.shape is None:
        raise AssertionError("the body of rotary_embedding needs shapes")
    single = b.op(reshaping.unsqueeze, table, axes=(len(table.shape),))
    twice = b.op(repeating.expand, single, shape=(*table.shape, 2))
    return b.op(reshaping.reshape, twice, shape=(*table.shape[:-1], 2 * table.shape[-1]))


rotary_embedding = OpSpec(
    name="rotary_embedding",
    source="ONNX RotaryEmbedding-23",
    operands=(
        Operand("x"),  # [B, H, S, D]
        # [P, R/2] looked up by `positions`, else of the positions in x: [B, S, R/2] or [S, R/2]
        Operand("cos"),
        Operand("sin"),
        Operand("positions", optional=True),  # i64[B, S]
    ),
    attrs=(
        Attr("interleaved", AttrKind.BOOL, False),  # pairs (2 r, 2 r + 1) instead of (r, r + R/2)
        Attr("rotary_size", AttrKind.INT, None),  # R: the first channels that turn; None: all
    ),
    axes=_axes,
    infer=_infer,
    eval=_eval,
    flops=_flops,
    body=_body,
)

OPS: tuple[OpSpec, ...] = (rotary_embedding,)
