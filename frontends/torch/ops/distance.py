"""Importers of distances between rows: cdist, dist."""

from __future__ import annotations

from math import inf

from regraft.frontends.torch.call import CallImport, Import, row
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, logical, reduce
from regraft.ir.ops.reshaping import unsqueeze


def _norm(c: CallImport, gap: Value, order: float, axes: tuple[int, ...]) -> Value:
    """Returns the norm of that order along axes, which it drops."""
    if order == 1:
        return c.b.op(reduce.reduce_l1, gap, axes=axes, keepdims=False)
    if order == 2:
        return c.b.op(reduce.reduce_l2, gap, axes=axes, keepdims=False)
    size = c.b.op(arithmetic.abs_, gap)
    if order == inf:
        return c.b.op(reduce.reduce_max, size, axes=axes, keepdims=False)
    if order == -inf:
        return c.b.op(reduce.reduce_min, size, axes=axes, keepdims=False)
    if order == 0:
        same = c.b.op(logical.equal, gap, c.number(0.0, c.dtype))
        some = c.cast(c.b.op(logical.logical_not, same), c.dtype)
        return c.b.op(reduce.reduce_sum, some, axes=axes, keepdims=False)
    power = c.b.op(arithmetic.pow_, size, c.number(order, c.dtype))
    total = c.b.op(reduce.reduce_sum, power, axes=axes, keepdims=False)
    return c.b.op(arithmetic.pow_, total, c.number(1 / order, c.dtype))


def _cdist(c: CallImport) -> Value:
    """Distances of every row of one matrix to every row of the other.

    By differences, also where PyTorch takes products: those lose digits of small distances.
    """
    a, b = c.operand("x1"), c.operand("x2")
    rows = c.b.op(unsqueeze, a, axes=((a.rank or 0) - 1,))
    columns = c.b.op(unsqueeze, b, axes=((b.rank or 0) - 2,))
    gap = c.b.op(arithmetic.sub, rows, columns)
    return _norm(c, gap, float(c.attr("p")), ((gap.rank or 0) - 1,))


def _dist(c: CallImport) -> Value:
    gap = c.b.op(arithmetic.sub, c.operand("self"), c.operand("other"))
    return _norm(c, gap, float(c.attr("p")), tuple(range(gap.rank or 0)))


IMPORTS: tuple[Import, ...] = (
    row(_cdist, "aten.cdist.default", "aten._cdist_forward.default"),
    row(_dist, "aten.dist.default"),
)
