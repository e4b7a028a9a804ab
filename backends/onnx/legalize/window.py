"""Attention through a narrow window, in blocks: what no query sees is not computed.

Queries of one block of w positions see keys of their own block and of the one before, w being as
far as the window reaches. Blocks become rows of the batch.
"""

from __future__ import annotations

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    attention,
    fill,
    logical,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.rewrite import LocalRule, Reject, Rewriter
from regraft.ir.types import DType

_GAIN = 4
"""Blocks pay where the sequence is this many times as long as a window."""


def in_blocks(node: Node, rw: Rewriter) -> bool | Reject:
    """Takes blocks where positions alone hide keys, and hide most of them."""
    q, k, v, mask, lengths, _, offset, _, gates = node.inputs
    left, right = node.attrs["window"]
    if left <= 0 or right != 0 or node.attrs["causal_offset"] != 0:
        return False
    if any(x is not None for x in (mask, lengths, offset, gates)):
        return Reject("a mask or lengths hide keys too")
    if q is None or k is None or v is None or q.shape is None or k.shape is None:
        return False
    T = q.shape[2]
    if node.attrs["modifier"] != "none" or k.shape[2] != T:
        return Reject("queries and keys are not those of one sequence")
    if not isinstance(T, int) or _GAIN * left > T:
        return Reject("the sequence is not known to be much longer than the window")
    rw.replace(node, _build(node, (q, k, v), left, T, rw.builder(node)))
    return True


def _build(node: Node, operands: tuple[Value, Value, Value], w: int, T: int, b: Builder) -> Value:
    N = -(-T // w)
    q, k, v = (_padded(b, x, N * w - T) for x in operands)
    blocks = [_blocks(b, x, N, w) for x in (q, k, v)]  # [B, N, H, w, D]
    keys, values = (_with_earlier(b, x) for x in blocks[1:])
    rows = b.op(fill.range_, start=w, limit=2 * w, delta=1, dtype=DType.I64)
    rows = b.op(reshaping.unsqueeze, rows, axes=(1,))
    columns = b.op(fill.range_, start=0, limit=2 * w, delta=1, dtype=DType.I64)
    far = b.op(arithmetic.sub, rows, b.constant(w, DType.I64))
    seen = b.op(
        logical.logical_and,
        b.op(logical.less_or_equal, columns, rows),
        b.op(logical.greater_or_equal, columns, far),
    )  # [w, 2 w]
    numbers = b.op(fill.range_, start=0, limit=N, delta=1, dtype=DType.I64)
    is_later = b.op(logical.greater, numbers, b.constant(0, DType.I64))
    is_later = b.op(reshaping.reshape, is_later, shape=(N, 1, 1, 1))
    is_own = b.op(logical.greater_or_equal, columns, b.constant(w, DType.I64))
    mask = b.op(logical.logical_and, seen, b.op(logical.logical_or, is_later, is_own))
    B = (q.shape or ())[0]
    if B != 1:
        mask = b.op(repeating.tile, mask, repeats=(B, 1, 1, 1))
    flat = [_merged(b, x) for x in (blocks[0], keys, values)]
    inputs = [*flat, mask, None, node.inputs[5], None, *node.inputs[7:]]
    attrs = {**node.attrs, "causal_offset": None, "window": (-1, 0)}
    out = b.op(attention.attention, *inputs, **attrs)
    _, H, _, E = out.shape or ()
    split = b.op(reshaping.reshape, out, shape=(B, N, H, w, E))
    lined = b.op(reshaping.transpose, split, perm=(0, 2, 1, 3, 4))
    whole = b.op(reshaping.reshape, lined, shape=(B, H, N * w, E))
    if N * w == T:
        return whole
    return b.op(slicing.slice_, whole, starts=(0,), ends=(T,), axes=(2,), steps=(1,))


def _padded(b: Builder, x: Value, more: int) -> Value:
    if not more:
        return x
    B, H, _, D = x.shape or ()
    zero = np.zeros(1, (x.dtype or DType.F32).numpy)
    zeros = b.op(fill.constant_of_shape, shape=(B, H, more, D), value=zero)
    return b.op(slicing.concat, x, zeros, axis=2)


def _blocks(b: Builder, x: Value, N: int, w: int) -> Value:
    """Returns [B, H, N w, D] as [B, N, H, w, D]."""
    B, H, _, D = x.shape or ()
    split = b.op(reshaping.reshape, x, shape=(B, H, N, w, D))
    return b.op(reshaping.transpose, split, perm=(0, 2, 1, 3, 4))


def _with_earlier(b: Builder, x: Value) -> Value:
    """Returns every block behind the one before it, [B, N, H, 2 w, D]; zeros before the first."""
    B, N, H, w, D = x.shape or ()
    zero = np.zeros(1, (x.dtype or DType.F32).numpy)
    first = b.op(fill.constant_of_shape, shape=(B, 1, H, w, D), value=zero)
    last: DimLike = N - 1
    rest = b.op(slicing.slice_, x, starts=(0,), ends=(last,), axes=(1,), steps=(1,))
    earlier = b.op(slicing.concat, first, rest, axis=1)
    return b.op(slicing.concat, earlier, x, axis=3)


def _merged(b: Builder, x: Value) -> Value:
    B, N, H, w, D = x.shape or ()
    return b.op(reshaping.reshape, x, shape=(B * N, H, w, D))


RULES: tuple[LocalRule, ...] = (LocalRule("legalize-window", (attention.attention,), in_blocks),)
"""For ONNX Runtime, whose kernels compute all scores or read a mask of all."""
