"""Experts in standard operators that compute their own tokens alone, one expert after the other.

The tokens of an expert are picked (`NonZero`, `Gather`), go through its layers, and are added where
they came from (`ScatterND`), all experts at once. Against computing every expert for every token,
it costs what is chosen and no more; an expert without tokens computes matrices of no rows.
"""

from __future__ import annotations

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import product
from regraft.ir.graph import Node, Value
from regraft.ir.ops import (
    arithmetic,
    cast,
    fill,
    gathering,
    linalg,
    logical,
    reshaping,
    scattering,
    selecting,
    slicing,
)
from regraft.ir.ops.moe_hidden import write_hidden, write_result
from regraft.ir.ops.moe_routing import write_routing


def gathered(node: Node, b: Builder) -> Value:
    """Returns the result of an operator `moe`; the number of its experts is static."""
    x, router, up, down = node.inputs[:4]
    if x is None or router is None or up is None or down is None:
        raise AssertionError("moe has tokens, scores and weights")
    if x.shape is None or up.shape is None or down.shape is None or x.dtype is None:
        raise AssertionError("the body of moe needs shapes and an element type")
    num, E = product(x.shape[:-1]), up.shape[0]
    assert isinstance(E, int), "asked for static numbers of experts"
    scores = b.op(reshaping.reshape, router, shape=(num, E))
    weights = write_routing(node, b, scores, node.inputs[8], node.inputs[9])  # [E, tokens, 1]
    if weights.dtype is not x.dtype:
        weights = b.op(cast.cast, weights, to=x.dtype)
    tokens = b.op(reshaping.reshape, x, shape=(num, x.shape[-1]))
    zero = b.constant(0, x.dtype)
    results, places = [], []
    for expert in range(E):
        share = b.op(reshaping.reshape, _of(b, weights, expert), shape=(num, 1))
        flat = b.op(reshaping.reshape, share, shape=(num,))
        own = b.op(selecting.non_zero, b.op(logical.logical_not, b.op(logical.equal, flat, zero)))
        place = b.op(reshaping.squeeze, own, axes=(0,))
        rows, factor = (b.op(gathering.gather, each, place, axis=0) for each in (tokens, share))
        if node.attrs["weigh_input"]:
            results.append(_one(node, b, b.op(arithmetic.mul, rows, factor), expert))
        else:
            results.append(b.op(arithmetic.mul, _one(node, b, rows, expert), factor))
        places.append(b.op(reshaping.transpose, own, perm=(1, 0)))
    nothing = b.op(
        fill.constant_of_shape, shape=(num, down.shape[1]), value=np.zeros(1, x.dtype.numpy)
    )
    total = b.op(
        scattering.scatter_nd, nothing, b.op(slicing.concat, *places, axis=0),
        b.op(slicing.concat, *results, axis=0), reduction="add",
    )  # fmt: skip
    return b.op(reshaping.reshape, total, shape=(*x.shape[:-1], down.shape[1]))


def _one(node: Node, b: Builder, rows: Value, expert: int) -> Value:
    """Returns what one expert makes of rows [n, D]."""
    attrs = node.attrs
    _, _, up, down, gate, up_bias, down_bias, gate_bias = node.inputs[:8]
    assert up is not None, "moe has weights"
    assert down is not None, "moe has weights"
    width = attrs["widths"][expert] if attrs["widths"] else None

    def project(value: Value, weight: Value, bias: Value | None) -> Value:
        part = _narrowed(b, _of(b, weight, expert), 0, width)
        result = b.op(linalg.matmul, value, b.op(reshaping.transpose, part, perm=(1, 0)))
        if bias is None:
            return result
        own = _narrowed(b, _of(b, bias, expert), 0, width)
        return b.op(arithmetic.add, result, own)

    gates = None if gate is None else project(rows, gate, gate_bias)
    hidden = write_hidden(attrs, b, project(rows, up, up_bias), gates)
    part = _narrowed(b, _of(b, down, expert), 1, width)
    result = b.op(linalg.matmul, hidden, b.op(reshaping.transpose, part, perm=(1, 0)))
    if down_bias is not None:
        result = b.op(arithmetic.add, result, _of(b, down_bias, expert))
    return write_result(attrs, b, result)


def _of(b: Builder, stacked: Value, expert: int) -> Value:
    """Returns an expert's part; of a constant, the runtime takes it once, when it loads."""
    return b.op(gathering.gather, stacked, b.constant(np.array(expert, np.int64)), axis=0)


def _narrowed(b: Builder, part: Value, axis: int, width: int | None) -> Value:
    """Returns the hidden channels that an expert has, along an axis."""
    if width is None or part.shape is None or part.shape[axis] == width:
        return part
    return b.op(slicing.slice_, part, starts=(0,), ends=(width,), axes=(axis,))
