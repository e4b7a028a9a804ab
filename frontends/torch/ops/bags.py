"""Importers of sums over groups of rows: embedding bags, counts of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import reshaped, shape_of
from regraft.frontends.torch.ops.slicing import joined, sliced
from regraft.frontends.torch.scalars import counted
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical
from regraft.ir.ops.fill import constant_of_shape, range_
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.reduce import reduce_max, reduce_sum
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.ops.scattering import scatter_elements, scatter_nd
from regraft.ir.types import DType

_SUM, _MEAN, _MAX = 0, 1, 2


def _embedding_bag(c: CallImport) -> Sequence[Value | None]:
    """Rows of a table, added up, averaged or at their largest within each bag.

    Args of the call: weight `[V, D]`, indices `[N]`, offsets `[B]` (start of each bag), and one
    end more where the last offset is included.
    """
    table, mode = c.value("weight"), c.attr("mode")
    indices = c.cast(c.value("indices"), DType.I64)
    offsets = c.cast(c.value("offsets"), DType.I64)
    (count,), (num_bags,) = shape_of(indices), shape_of(offsets)
    if c.attr("include_last_offset"):
        num_bags = num_bags - 1
        offsets = sliced(c, offsets, 0, 0, num_bags)
    rows = c.b.op(gather, table, indices, axis=0)
    scales = c.optional("per_sample_weights")
    if scales is not None:
        rows = c.b.op(arithmetic.mul, rows, c.b.op(unsqueeze, scales, axes=(1,)))
    # a row belongs to the last bag that starts at or before it
    places = c.b.op(range_, start=0, limit=count, delta=1, dtype=DType.I64)
    begun = c.b.op(
        logical.less_or_equal, c.b.op(unsqueeze, offsets, axes=(0,)),
        c.b.op(unsqueeze, places, axes=(1,)),
    )  # fmt: skip
    begun = c.b.op(reduce_sum, c.cast(begun, DType.I64), axes=(1,), keepdims=False)
    bags = c.b.op(arithmetic.sub, begun, c.number(1, DType.I64))
    bags = c.b.op(unsqueeze, bags, axes=(1,))
    padding = c.attr("padding_idx")
    is_used = None
    if padding is not None and padding >= 0:
        same = c.b.op(logical.equal, indices, c.number(padding, DType.I64))
        is_used = c.b.op(unsqueeze, c.b.op(logical.logical_not, same), axes=(1,))
        neutral = c.number(float("-inf") if mode == _MAX else 0.0, c.dtype)
        rows = c.b.op(logical.where, is_used, rows, neutral)
    shape = (num_bags, shape_of(table)[1])
    ones = c.number(1.0, c.dtype)
    used = expanded(c, ones, (count, 1)) if is_used is None else c.cast(is_used, c.dtype)
    zeros = c.b.op(constant_of_shape, shape=(num_bags, 1), value=np.zeros(1, c.dtype.numpy))
    sizes = c.b.op(scatter_nd, zeros, bags, used, reduction="add")
    if mode == _MAX:
        lowest = expanded(c, c.number(float("-inf"), c.dtype), shape)
        largest = c.b.op(scatter_nd, lowest, bags, rows, reduction="max")
        is_empty = c.b.op(logical.equal, sizes, c.number(0.0, c.dtype))
        out = c.b.op(logical.where, is_empty, c.number(0.0, c.dtype), largest)
        return [out, None, None, None]
    start = expanded(c, c.number(0.0, c.dtype), shape)
    out = c.b.op(scatter_nd, start, bags, rows, reduction="add")
    if mode == _MEAN:
        out = c.b.op(arithmetic.div, out, c.b.op(arithmetic.max_, sizes, ones))
    return [out, None, None, None]


def _bincount(c: CallImport) -> Value:
    """How often each of 0, 1, … occurs; the largest of them says how many there are."""
    x, least = c.cast(c.value("self"), DType.I64), c.attr("minlength")
    if not isinstance(least, int):
        raise UnsupportedCallError("a symbolic number of bins")
    floor = c.b.constant(np.array([least - 1], np.int64))
    largest = c.b.op(reduce_max, joined(c, [x, floor], 0), axes=(0,), keepdims=False)
    size = counted(c.b, c.b.op(arithmetic.add, largest, c.number(1, DType.I64)))
    weights = c.optional("weights")
    if weights is None:
        weights = expanded(c, c.number(1, c.dtype), shape_of(x))
    start = expanded(c, c.number(0, c.dtype), (size,))
    return c.b.op(
        scatter_elements, start, x, reshaped(c, c.cast(weights, c.dtype), shape_of(x)), axis=0,
        reduction="add",
    )  # fmt: skip


IMPORTS: tuple[Import, ...] = (
    row(
        _embedding_bag, "aten._embedding_bag.default", "aten._embedding_bag_forward_only.default",
        "aten.embedding_bag.padding_idx",
    ),
    row(_bincount, "aten.bincount.default"),
)  # fmt: skip
