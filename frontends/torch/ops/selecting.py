"""Importers of order and choice: sort, top-k, unique, bucketize."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.torch.call import CallImport, Import, UnsupportedCallError, row
from regraft.frontends.torch.ops.promotion import promote
from regraft.frontends.torch.ops.shape import reshaped, shape_of
from regraft.frontends.torch.ops.slicing import selected, sliced
from regraft.ir.dims import DimLike, product
from regraft.ir.graph import Value
from regraft.ir.ops import logical, selecting
from regraft.ir.ops.reduce import reduce_sum
from regraft.ir.ops.reshaping import unsqueeze
from regraft.ir.types import DType


def _ordered(
    c: CallImport, x: Value, axis: int, count: DimLike, *, largest: bool, in_order: bool = True
) -> Sequence[Value]:
    wide = c.cast(x, DType.I32) if x.dtype is DType.BOOL else x
    values, indices = c.b.multi(
        selecting.top_k, wide, k=count, axis=axis, largest=largest, sorted=in_order
    )
    return [c.cast(values, x.dtype or c.dtype), indices]


def _sorted(c: CallImport, x: Value, *, descending: bool) -> Sequence[Value]:
    if not x.rank:
        return [x, c.number(0, DType.I64)]
    axis = c.axis("dim", x.rank)
    return _ordered(c, x, axis, shape_of(x)[axis], largest=descending)


def _sort(c: CallImport) -> Sequence[Value]:
    return _sorted(c, c.value("self"), descending=bool(c.attr("descending")))


def _argsort(c: CallImport) -> Value:
    return _sorted(c, c.value("self"), descending=bool(c.attr("descending")))[1]


def _msort(c: CallImport) -> Value:
    x = c.value("self")
    return _ordered(c, x, 0, shape_of(x)[0], largest=False)[0] if x.rank else x


def _top_k(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    if not x.rank:
        return [x, c.number(0, DType.I64)]
    return _ordered(
        c, x, c.axis("dim", x.rank), c.attr("k"), largest=bool(c.attr("largest")),
        in_order=bool(c.attr("sorted")),
    )  # fmt: skip


def _kth(c: CallImport) -> Sequence[Value]:
    return _rank_of(c, c.attr("k"))


def _median(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    if not x.rank:
        return [x, c.number(0, DType.I64)]
    size = shape_of(x)[c.axis("dim", x.rank)]
    if not isinstance(size, int):
        raise UnsupportedCallError("the median of a symbolic number of elements")
    return _rank_of(c, (size + 1) // 2)


def _median_of_all(c: CallImport) -> Value:
    x = c.value("self")
    count = product(shape_of(x))
    if not isinstance(count, int) or not count:
        raise UnsupportedCallError("the median of a symbolic number of elements")
    flat = reshaped(c, x, (count,))
    k = (count + 1) // 2
    return selected(c, _ordered(c, flat, 0, k, largest=False)[0], 0, k - 1)


def _rank_of(c: CallImport, k: int) -> Sequence[Value]:
    """Returns the k-th smallest elements of an axis and where they stand."""
    x = c.value("self")
    if not x.rank:
        return [x, c.number(0, DType.I64)]
    axis = c.axis("dim", x.rank)
    parts = _ordered(c, x, axis, k, largest=False)
    if c.attr("keepdim"):
        return [sliced(c, part, axis, k - 1, k) for part in parts]
    return [selected(c, part, axis, k - 1) for part in parts]


def _bucketize(c: CallImport) -> Value:
    return _num_below(c, c.operand("self", _common(c, "self", "boundaries")),
                      c.cast(c.value("boundaries"), _common(c, "self", "boundaries")),
                      right=bool(c.attr("right")))  # fmt: skip


def _search_sorted(c: CallImport) -> Value:
    if c.optional("sorter") is not None:
        raise UnsupportedCallError("a sorter")
    right = bool(c.attr("right")) or c.attr("side") == "right"
    dtype = _common(c, "self", "sorted_sequence")
    values = c.operand("self", dtype)
    sequence = c.cast(c.value("sorted_sequence"), dtype)
    if sequence.rank and sequence.rank > 1:  # every row has its own sequence
        sequence = c.b.op(unsqueeze, sequence, axes=(sequence.rank - 1,))
    return _num_below(c, values, sequence, right=right)


def _common(c: CallImport, first: str, second: str) -> DType:
    a, b = c.args[first], c.value(second)
    found = b.dtype or DType.F32
    if isinstance(a, Value) and a.dtype is not None:
        return promote(a.dtype, found)
    return promote(found, DType.F32) if isinstance(a, float) else found


def _num_below(c: CallImport, values: Value, bounds: Value, *, right: bool) -> Value:
    """Returns how many bounds lie before each value; with `right`, at it too."""
    rank = values.rank or 0
    wide = c.b.op(unsqueeze, values, axes=(rank,))
    spec = logical.less_or_equal if right else logical.less
    before = c.cast(c.b.op(spec, bounds, wide), c.dtype)
    return c.b.op(reduce_sum, before, axes=(rank,), keepdims=False)


def _unique(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    axis = None if c.args.get("dim") is None else c.axis("dim", len(shape_of(x)))
    values, _, inverse, counts = c.b.multi(
        selecting.unique, x, num_outputs=4, axis=axis, sorted=True
    )
    if axis is None:
        inverse = reshaped(c, inverse, shape_of(x))
    return [values, inverse, counts]


IMPORTS: tuple[Import, ...] = (
    row(_sort, "aten.sort.default", "aten.sort.stable"),
    row(_argsort, "aten.argsort.default", "aten.argsort.stable"),
    row(_msort, "aten.msort.default"),
    row(_top_k, "aten.topk.default"),
    row(_kth, "aten.kthvalue.default"),
    row(_median, "aten.median.dim"),
    row(_median_of_all, "aten.median.default"),
    row(_bucketize, "aten.bucketize.Tensor", "aten.bucketize.Scalar"),
    row(_search_sorted, "aten.searchsorted.Tensor", "aten.searchsorted.Scalar"),
    row(_unique, "aten._unique2.default", "aten.unique_dim.default"),
)
