"""Importers of running extrema and sums of exponentials: n places take log2(n) steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import reshaped, shape_of
from regraft.frontends.torch.ops.slicing import joined, sliced
from regraft.ir.graph import Value
from regraft.ir.ops import activation, arithmetic, functions, logical
from regraft.ir.ops.fill import range_
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

Pairs = Sequence[Value]
Combine = Callable[[Pairs, Pairs], list[Value]]
"""(what holds up to a place, what holds from there on) -> what holds over both."""


def _running(c: CallImport, items: Pairs, axis: int, combine: Combine) -> Pairs:
    """Returns at every place the combination of all places up to it."""
    size = shape_of(items[0])[axis]
    if not isinstance(size, int):
        raise UnsupportedCallError("a running result along an axis of symbolic size")
    reach = 1
    while reach < size:
        early = [sliced(c, item, axis, 0, size - reach) for item in items]
        late = [sliced(c, item, axis, reach, size) for item in items]
        heads = [sliced(c, item, axis, 0, reach) for item in items]
        both = combine(early, late)
        items = [joined(c, [a, b], axis) for a, b in zip(heads, both, strict=True)]
        reach *= 2
    return items


def _extremum(is_before: OpSpec) -> Importer:
    """Returns an importer of `cummax` (less) or `cummin` (greater): the last of equal places."""

    def run(c: CallImport) -> Sequence[Value]:
        x = c.value("self")
        if not x.rank:
            return [x, c.number(0, DType.I64)]
        axis, shape = c.axis("dim", x.rank), shape_of(x)
        place = c.b.op(range_, start=0, limit=shape[axis], delta=1, dtype=DType.I64)
        place = reshaped(c, place, [shape[i] if i == axis else 1 for i in range(len(shape))])
        wide = c.cast(x, DType.I32) if x.dtype is DType.BOOL else x

        def combine(early: Pairs, late: Pairs) -> list[Value]:
            stays = c.b.op(is_before, late[0], early[0])
            if wide.dtype is not None and wide.dtype.is_float:  # a NaN is kept from where it is
                stays = c.b.op(
                    logical.logical_or, stays,
                    c.b.op(logical.logical_and, c.b.op(functions.is_nan, early[0]),
                           c.b.op(logical.logical_not, c.b.op(functions.is_nan, late[0]))),
                )  # fmt: skip
            pairs = zip(early, late, strict=True)
            return [c.b.op(logical.where, stays, a, b) for a, b in pairs]

        values, places = _running(c, [wide, expanded(c, place, shape)], axis, combine)
        return [c.cast(values, c.dtype), places]

    return run


def _log_cum_sum_exp(c: CallImport) -> Value:
    x = c.operand("self")
    if not x.rank:
        return x
    lowest = c.number(float("-inf"), c.dtype)

    def combine(early: Pairs, late: Pairs) -> list[Value]:
        top = c.b.op(arithmetic.max_, early[0], late[0])
        low = c.b.op(arithmetic.min_, early[0], late[0])
        gap = c.b.op(arithmetic.sub, low, top)  # NaN of two infinities
        both = c.b.op(arithmetic.add, top, c.b.op(activation.softplus, gap))
        return [c.b.op(logical.where, c.b.op(logical.equal, low, lowest), top, both)]

    return _running(c, [x], c.axis("dim", x.rank), combine)[0]


IMPORTS: tuple[Import, ...] = (
    row(_extremum(logical.less), "aten.cummax.default"),
    row(_extremum(logical.greater), "aten.cummin.default"),
    row(_log_cum_sum_exp, "aten.logcumsumexp.default"),
)
