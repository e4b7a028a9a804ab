"""Importers of reductions: sums, means, extrema, norms, variances, truth values."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.ir.dims import DimLike, dim_max, product
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, logical, reduce, selecting
from regraft.ir.ops.reshaping import reshape, squeeze
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType


def reduced_axes(rank: int, dim: Any) -> tuple[int, ...]:
    """Returns the axes, not negative and sorted, that a `dim` argument names; None or () names all.

    A 0-d tensor has no axis, whatever `dim` says.
    """
    if dim is None or dim == ():
        return tuple(range(rank))
    if rank == 0:
        return ()
    dims = dim if isinstance(dim, tuple) else (dim,)
    return tuple(sorted({axis % rank for axis in dims}))


def _axes(c: CallImport, x: Value) -> tuple[int, ...]:
    return reduced_axes(x.rank or 0, c.attr("dim"))


def reduced(c: CallImport, spec: OpSpec, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """Returns a reduction over axes."""
    return c.b.op(spec, x, axes=axes, keepdims=keepdims)


def _keepdim(c: CallImport) -> bool:
    return bool(c.attr("keepdim"))


def _reduction(spec: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.operand("self")
        return reduced(c, spec, x, _axes(c, x), _keepdim(c))

    return run


def _extremum(spec: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        wide = c.cast(x, DType.I32) if x.dtype is DType.BOOL else x
        return c.cast(reduced(c, spec, wide, _axes(c, x), _keepdim(c)), c.dtype)

    return run


def _extremum_along(spec: OpSpec, arg: OpSpec) -> Importer:
    """Returns an importer of `max.dim`: values and the first position of each."""

    def run(c: CallImport) -> Sequence[Value]:
        x = c.value("self")
        if not x.rank:
            return x, c.number(0, DType.I64)
        axis, keepdims = c.axis("dim", x.rank), _keepdim(c)
        wide = c.cast(x, DType.I32) if x.dtype is DType.BOOL else x
        values = c.cast(reduced(c, spec, wide, (axis,), keepdims), c.dtype)
        return values, c.b.op(arg, wide, axis=axis, keepdims=keepdims)

    return run


def _arg(spec: OpSpec) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.value("self")
        if x.dtype is DType.BOOL:
            x = c.cast(x, DType.I32)
        if c.attr("dim") is None or not x.rank:
            flat = c.b.op(reshape, x, shape=(product(x.shape or ()),))
            found = c.b.op(spec, flat, axis=0, keepdims=False)
            return c.b.op(reshape, found, shape=c.shape) if c.shape else found
        return c.b.op(spec, x, axis=c.axis("dim", x.rank), keepdims=_keepdim(c))

    return run


def _min_max(c: CallImport) -> Sequence[Value]:
    x = c.value("self")
    axes = _axes(c, x)
    specs = (reduce.reduce_min, reduce.reduce_max)
    return [reduced(c, spec, x, axes, _keepdim(c)) for spec in specs]


def _truth(spec: OpSpec, *, of_all: bool) -> Importer:
    """Returns an importer of `any` (the largest truth) or `all` (the smallest)."""

    def run(c: CallImport) -> Value:
        x = c.operand("self", DType.BOOL)
        if of_all and c.attr("dim") == ():
            raise UnsupportedCallError("an empty list of dims")
        found = reduced(c, spec, c.cast(x, DType.I32), _axes(c, x), _keepdim(c))
        return c.cast(found, c.dtype)

    return run


def _count_nonzero(c: CallImport) -> Value:
    x = c.operand("self", DType.BOOL)
    return reduced(c, reduce.reduce_sum, c.cast(x, DType.I64), _axes(c, x), False)


def _num_reduced(x: Value, axes: tuple[int, ...]) -> DimLike:
    shape = x.shape or ()
    return product([shape[axis] for axis in axes])


def _variance(c: CallImport, x: Value) -> tuple[Value, Value]:
    """Returns the variance and the mean, both with the reduced axes kept."""
    axes = _axes(c, x)
    correction = c.attr("correction")
    if correction is None:
        correction = 1 if c.args.get("unbiased", True) else 0
    dtype = x.dtype or c.dtype
    mean = reduced(c, reduce.reduce_mean, x, axes, True)
    centered = c.b.op(arithmetic.sub, x, mean)
    square = c.b.op(arithmetic.mul, centered, centered)
    if correction == 0:
        return reduced(c, reduce.reduce_mean, square, axes, True), mean
    count = _num_reduced(x, axes)
    if isinstance(correction, float) and not correction.is_integer():
        if not isinstance(count, int):
            raise UnsupportedCallError("a fractional correction of a symbolic number of elements")
        divisor = c.number(max(count - correction, 0.0), dtype)
    else:
        divisor = c.number(dim_max(count - int(correction), 0), dtype)
    total = reduced(c, reduce.reduce_sum, square, axes, True)
    return c.b.op(arithmetic.div, total, divisor), mean


def _without_axes(c: CallImport, x: Value, value: Value) -> Value:
    """Returns a reduced value with or without the reduced axes, as the call wants."""
    axes = _axes(c, x)
    return value if _keepdim(c) or not axes else c.b.op(squeeze, value, axes=axes)


def _var(*, root: bool, with_mean: bool) -> Importer:
    def run(c: CallImport) -> Sequence[Value]:
        x = c.value("self")
        variance, mean = _variance(c, x)
        spread = c.b.op(functions.sqrt, variance) if root else variance
        results = [spread, mean] if with_mean else [spread]
        return [_without_axes(c, x, value) for value in results]

    return run


def _norm_of(c: CallImport, x: Value, order: float, axes: tuple[int, ...]) -> Value:
    keepdims = _keepdim(c)
    if order in (1.0, 2.0):
        spec = reduce.reduce_l2 if order == 2.0 else reduce.reduce_l1
        return reduced(c, spec, x, axes, keepdims)
    size = c.b.op(arithmetic.abs_, x)
    if order in (inf, -inf):
        spec = reduce.reduce_max if order > 0 else reduce.reduce_min
        return reduced(c, spec, size, axes, keepdims)
    if order == 0:
        some = c.b.op(logical.logical_not, c.b.op(logical.equal, x, c.number(0.0, c.dtype)))
        return reduced(c, reduce.reduce_sum, c.cast(some, c.dtype), axes, keepdims)
    power = c.b.op(arithmetic.pow_, size, c.number(order, c.dtype))
    total = reduced(c, reduce.reduce_sum, power, axes, keepdims)
    return c.b.op(arithmetic.pow_, total, c.number(1 / order, c.dtype))


def _norm(name: str) -> Importer:
    def run(c: CallImport) -> Value:
        x = c.operand("self")
        if not x.dtype or not x.dtype.is_float:
            raise UnsupportedCallError("a norm of complex numbers")
        order = c.attr(name)
        return _norm_of(c, x, 2.0 if order is None else float(order), _axes(c, x))

    return run


def _frobenius(c: CallImport) -> Value:
    x = c.operand("self")
    return _norm_of(c, x, 2.0, _axes(c, x))


def _log_sum_exp(c: CallImport) -> Value:
    x = c.operand("self")
    return reduced(c, reduce.reduce_log_sum_exp, x, _axes(c, x), _keepdim(c))


def _is_all_true(c: CallImport) -> Value:
    x = c.value("self")
    found = reduced(c, reduce.reduce_min, c.cast(x, DType.I32), _axes(c, x), False)
    return c.cast(found, DType.BOOL)


def _is_any_true(c: CallImport) -> Value:
    x = c.value("self")
    found = reduced(c, reduce.reduce_max, c.cast(x, DType.I32), _axes(c, x), False)
    return c.cast(found, DType.BOOL)


IMPORTS: tuple[Import, ...] = (
    row(_reduction(reduce.reduce_sum), "aten.sum.default", "aten.sum.dim_IntList"),
    row(_reduction(reduce.reduce_mean), "aten.mean.default", "aten.mean.dim"),
    row(_reduction(reduce.reduce_prod), "aten.prod.default", "aten.prod.dim_int"),
    row(_extremum(reduce.reduce_max), "aten.amax.default", "aten.max.default"),
    row(_extremum(reduce.reduce_min), "aten.amin.default", "aten.min.default"),
    row(_extremum_along(reduce.reduce_max, selecting.arg_max), "aten.max.dim"),
    row(_extremum_along(reduce.reduce_min, selecting.arg_min), "aten.min.dim"),
    row(_arg(selecting.arg_max), "aten.argmax.default"),
    row(_arg(selecting.arg_min), "aten.argmin.default"),
    row(_min_max, "aten.aminmax.default"),
    row(
        _truth(reduce.reduce_max, of_all=False), "aten.any.default", "aten.any.dim",
        "aten.any.dims",
    ),
    row(
        _truth(reduce.reduce_min, of_all=True), "aten.all.default", "aten.all.dim",
        "aten.all.dims",
    ),
    row(_is_all_true, "aten._is_all_true.default"),
    row(_is_any_true, "aten._is_any_true.default"),
    row(
        _count_nonzero, "aten.count_nonzero.default", "aten.count_nonzero.dim_IntList"
    ),
    row(
        _var(root=False, with_mean=False), "aten.var.default", "aten.var.dim",
        "aten.var.correction",
    ),
    row(
        _var(root=True, with_mean=False), "aten.std.default", "aten.std.dim",
        "aten.std.correction",
    ),
    row(
        _var(root=False, with_mean=True), "aten.var_mean.default", "aten.var_mean.dim",
        "aten.var_mean.correction",
    ),
    row(
        _var(root=True, with_mean=True), "aten.std_mean.default", "aten.std_mean.dim",
        "aten.std_mean.correction",
    ),
    row(_norm("ord"), "aten.linalg_vector_norm.default"),
    row(
        _norm("p"), "aten.norm.Scalar", "aten.norm.ScalarOpt_dim",
        "aten.norm.ScalarOpt_dim_dtype", "aten.norm.ScalarOpt_dtype",
    ),
    row(_frobenius, "aten.frobenius_norm.dim"),
    row(_log_sum_exp, "aten.logsumexp.default"),
)  # fmt: skip
